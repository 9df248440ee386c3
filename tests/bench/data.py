"""How fast documents are cleaned, compared and packed beside datatrove: ``make bench NAME=data``.

100 MB of English documents (``tests/bench/documents.py``) in slices; a slice goes through both, one after the other, each the
other way round than the slice before. Manta runs on a Ray cluster with as many cores as datatrove has processes; the start of
both is left out and printed. A ratio is datatrove's CPU seconds over Manta's, those of driver, workers and Ray itself, the
median over the slices (MinHash: times); ``_wall`` the same by the clock.

- Rules: Gopher's repetition and quality, C4 without terminal punctuation, FineWeb, in FineWeb's order with its thresholds, each
  side with its own words. Both read JSON lines and write what is left. ``rules_agreement`` is the share of documents that both
  keep or both drop.
- MinHash, 5-grams of words, 14 x 8, over all documents at once, three times, from JSON lines to clusters. The words are given:
  lower case with one space between them, and datatrove only cuts at the spaces. Manta does as ever, and writes the documents
  as well.
- Tokens: the same pieces, learnt by Manta, in both; the ids of some documents are compared. datatrove reads JSON lines and
  writes tokens one document after another; Manta reads its own files, packs documents into rows, checks and counts.

Then ``prepare`` as a whole, web's rules, MinHash and packing, of 10,000 and of 200,000 documents: by how
much a megabyte is dearer (``cost_growth``). Last the loader, ``tests/bench/loader.py``.

The last line is one JSON object.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa

from data.corpus import clean_tasks
from data.dedup.near import find_pairs
from data.dedup.signatures import signature_path
from data.dedup.spec import MinHashSpec
from data.dedup.union import first_of_clusters
from data.executors import Executor
from data.files import checksum
from data.packing import PackTask, pack_documents
from data.prepare import prepare
from data.ray_executor import RayDataExecutor
from data.sources import list_files
from data.spec import DataSpec, DocumentTokens, SourceSpec, TokenizerSpec
from data.stages.registry import PRESETS
from data.tasks import CleanResult, CleanTask, Rows, clean_files
from data.tokenizer import ORDINARY, Tokenizer, train_tokenizer
from tests.bench import loader
from tests.bench.cluster import Cluster, cluster
from tests.bench.datatrove import Datatrove, Spent
from tests.bench.documents import source_texts, write_documents

CORES = 2
VOCABULARY, ROW_LENGTH, SHARD_DOCUMENTS = 16384, 2048, 512
COMPARED_TEXTS = 200
# As FineWeb's code has them: a symbol is a word, a line of 30 characters is short, a share of 0.12 is enough.
RULES: list[dict[str, Any]] = [
    {"stage": "gopher_repetition"},
    {"stage": "gopher_quality", "symbols_are_words": True},
    {"stage": "c4", "require_terminal_punctuation": False},
    {"stage": "fineweb", "short_line_characters": 31, "min_punctuated_lines": 0.12 - 1e-9},
]
AT_LEAST = {
    "rules_vs_datatrove": 5.0,
    "rules_agreement": 0.995,
    "minhash_vs_datatrove": 1.5,
    "pack_vs_datatrove": 1.5,
    "loader_tokens_per_second": 5e6,
}
AT_MOST = {"cost_growth": 1.15, "loader_first_batch_seconds": 1.0}
PUBLISHED = {
    "rules": "C4-style filters 2.3 MB/s a core (Dolma)",
    "minhash": "signatures of 8 TB 0.9 MB/s a core (datatrove #298), MinHash on Ray 0.4 (Data-Juicer)",
    "pack": "SentencePiece 2.5 MB/s a core",
}


@dataclass(frozen=True)
class Sizes:
    slices: int = 4
    slice_bytes: int = 25_000_000
    file_bytes: int = 1_000_000
    mean_characters: int = 2500
    few: int = 10_000
    many: int = 200_000
    short_characters: int = 500
    """Of the documents of ``few`` and ``many``."""
    few_rounds: int = 3
    minhash_rounds: int = 3
    loader_shards: int = loader.SHARDS


@dataclass
class Race:
    """Of one kind of work, by slice."""

    bytes: int
    ours: list[Spent]
    theirs: list[Spent]

    def figures(self, name: str) -> dict[str, float]:
        return {
            f"{name}_vs_datatrove": round(median(b.cpu / a.cpu for a, b in zip(self.ours, self.theirs, strict=True)), 2),
            f"{name}_vs_datatrove_wall": round(median(b.wall / a.wall for a, b in zip(self.ours, self.theirs, strict=True)), 2),
            f"{name}_mb_per_core_second": round(self.bytes / 1e6 / sum(spent.cpu for spent in self.ours), 3),
            f"datatrove_{name}_mb_per_core_second": round(self.bytes / 1e6 / sum(spent.cpu for spent in self.theirs), 3),
        }


class Bench:
    def __init__(self, home: Path, cluster: Cluster, executor: Executor, peer: Datatrove) -> None:
        self.home, self.cluster, self.executor, self.peer = home, cluster, executor, peer

    def race(self, names: list[str], bytes_: int, ours: Callable[[str], Spent], theirs: Callable[[str], Spent]) -> Race:
        race = Race(bytes_, [], [])
        for number, name in enumerate(names):
            for mine in (True, False) if number % 2 == 0 else (False, True):
                spent = (ours if mine else theirs)(name)
                (race.ours if mine else race.theirs).append(spent)
                who = "Manta" if mine else "datatrove"
                say(f"  {name} {who}: {spent.cpu:.1f} CPU s, {spent.wall:.1f} s")
        return race

    def rules(self, names: list[str], bytes_: int) -> dict[str, float]:
        equal = documents = 0

        def ours(name: str) -> Spent:
            tasks = self.tasks(name, "rules", stages=RULES)
            return self.cluster.spend(lambda: self.clean(tasks))[1]

        def theirs(name: str) -> Spent:
            return self.peer.spend("rules", input=str(self.home / name), output=str(self.home / "datatrove-rules" / name))

        race = self.race(names, bytes_, ours, theirs)
        for name in names:
            everything = ids_of_lines(self.home / name)
            kept = ids_of_parts(self.home / "rules" / name)
            differ = kept ^ ids_of_lines(self.home / "datatrove-rules" / name)
            assert kept <= everything, f"{name}: Manta keeps what was never there"
            documents += len(everything)
            equal += len(everything) - len(differ)
        return race.figures("rules") | {"rules_agreement": round(equal / documents, 5), "rules_documents": documents}

    def minhash(self, names: list[str], bytes_: int) -> dict[str, float]:
        spec = MinHashSpec()
        removed = 0
        self.clean(self.tasks(names[0], "warm-minhash", stages=[], deduplicate=spec)[: 2 * CORES])

        def ours(name: str) -> Spent:
            tasks = self.tasks(name, "minhash", stages=[], deduplicate=spec)
            nonlocal removed
            removed, spent = self.cluster.spend(lambda: self.near_duplicates(tasks, spec))
            return spent

        def theirs(name: str) -> Spent:
            folder = self.home / "datatrove-minhash" / name
            return self.peer.spend("signatures", "buckets", "cluster", input=str(self.home / name), output=str(folder))

        figures = self.race(names, bytes_, ours, theirs).figures("minhash")
        listed = (self.home / "datatrove-minhash" / names[-1] / "removed").glob("*.remove")
        return figures | {
            "minhash_near_duplicates": removed,
            "datatrove_minhash_near_duplicates": sum(path.stat().st_size // 4 for path in listed),
        }

    def near_duplicates(self, tasks: list[CleanTask], spec: MinHashSpec) -> int:
        counts = [result.kept for result in self.clean(tasks)]
        files, folder = [signature_path(task.part) for task in tasks], tasks[0].part.parent
        pairs = find_pairs(spec, files, counts, folder / "near", self.executor, lambda: None)
        first = first_of_clusters(sum(counts), pairs, folder / "clusters", spec.memory_bytes)
        return int((first != np.arange(len(first))).sum())

    def pack(self, names: list[str], bytes_: int) -> dict[str, float]:
        tokenizer, peers = self.home / "tokenizer.model", self.home / "tokenizer.json"
        self.same_tokenizer(tokenizer, peers, self.home / names[0])

        def ours(name: str) -> Spent:
            tasks = self.tasks(name, "parts", stages=[])
            counts = [result.kept for result in self.clean(tasks)]
            packing = pack_tasks(tasks, counts, self.home / "packed" / name, tokenizer)
            return self.cluster.spend(lambda: list(self.executor.map(pack_documents, packing)))[1]

        def theirs(name: str) -> Spent:
            folder = self.home / "datatrove-tokens" / name
            return self.peer.spend("tokens", input=str(self.home / name), output=str(folder), tokenizer=str(peers))

        return self.race(names, bytes_, ours, theirs).figures("pack")

    def same_tokenizer(self, ours: Path, theirs: Path, folder: Path) -> None:
        texts = [json.loads(line)["text"] for path in sorted(folder.glob("*.jsonl"))[:4] for line in path.open()]
        ours.write_bytes(train_tokenizer(texts, TokenizerSpec(vocab_size=VOCABULARY)))
        tokenizer = Tokenizer.load(ours)
        kinds = tokenizer.kind_V.tolist()
        pieces, sample = self.home / "pieces.json", self.home / "texts.json"
        marks = {tokenizer.bos_id, tokenizer.eos_id}
        learnt = [kind == ORDINARY and number not in marks for number, kind in enumerate(kinds)]
        pieces.write_text(json.dumps(list(zip(tokenizer.pieces, learnt, strict=True))))
        sample.write_text(json.dumps(texts[:COMPARED_TEXTS]))
        answer = self.peer.ask("write_tokenizer", pieces=str(pieces), tokenizer=str(theirs), texts=str(sample))
        for text, ids in zip(texts, answer["ids"], strict=False):
            assert tokenizer.encode(text) == ids, f"the tokenizers differ on {text[:200]!r}"

    def cost_growth(self, sizes: Sizes, texts: list[str]) -> dict[str, float]:
        rules = {"normalise", "length", *(rule["stage"] for rule in RULES)}
        stages = [spec.model_dump() for spec in PRESETS["web"] if spec.model_dump()["stage"] in rules]
        cost: dict[int, list[float]] = {sizes.few: [], sizes.many: []}
        for number, count in enumerate((*[sizes.few] * (1 + sizes.few_rounds), sizes.many)):
            name = f"growth-{number}"
            bytes_ = write_documents(
                *(self.home / name, texts),
                documents=count,
                file_bytes=sizes.file_bytes,
                mean_characters=sizes.short_characters,
                seed=number,
            )
            _, spent = self.cluster.spend(partial(self.prepare, name, stages))
            if number:  # the first time is warming up
                cost[count].append(spent.cpu / (bytes_ / 1e6))
                say(f"  {count:,} documents, {bytes_ / 1e6:.0f} MB: {cost[count][-1]:.3f} CPU s a MB")
        few, many = median(cost[sizes.few]), median(cost[sizes.many])
        return {
            "cost_growth": round(many / few, 3),
            "cpu_seconds_a_mb_10k": round(few, 3),
            "cpu_seconds_a_mb_200k": round(many, 3),
        }

    def prepare(self, name: str, stages: list[dict[str, Any]]) -> None:
        data = self.spec(name, stages=stages, deduplicate="minhash", sequence_length=ROW_LENGTH)
        tokenizer = TokenizerSpec(path=str(self.home / "tokenizer.model"))
        prepare(data, tokenizer, self.home / f"{name}-prepared", self.executor, lambda progress: None)

    def spec(self, name: str, **settings: Any) -> DataSpec:
        return DataSpec(sources=(SourceSpec(path=f"{self.home / name}/*.jsonl"),), **settings)

    def tasks(self, name: str, kind: str, **settings: Any) -> list[CleanTask]:
        data = self.spec(name, **settings)
        work = self.home / kind / name
        work.mkdir(parents=True)
        return list(clean_tasks(data, [list_files(data.sources[0], "")], work))

    def clean(self, tasks: list[CleanTask]) -> list[CleanResult]:
        return sorted(self.executor.map(clean_files, tasks), key=lambda result: result.index)


def pack_tasks(tasks: list[CleanTask], counts: list[int], directory: Path, tokenizer: Path) -> list[PackTask]:
    """About ``SHARD_DOCUMENTS`` documents a shard: whole parts."""
    directory.mkdir(parents=True)
    groups: list[list[int]] = [[]]
    for number, count in enumerate(counts):
        if groups[-1] and sum(counts[n] for n in groups[-1]) + count > SHARD_DOCUMENTS:
            groups.append([])
        groups[-1].append(number)
    return [
        PackTask(
            index=index,
            directory=directory,
            name=f"{index:06}",
            marker=directory / f"{index:06}.json",
            split="train",
            cell=0,
            cell_name=("en", "web"),
            documents=tuple((tasks[n].part, Rows.of(np.arange(counts[n]))) for n in group),
            tokenizer=tokenizer,
            tokenizer_checksum=checksum(tokenizer),
            segments=(0,),
            row_lengths=(ROW_LENGTH,),
            align=1,
            one_document=False,
            limits=DocumentTokens(),
            keep_documents=False,
        )
        for index, group in enumerate(groups)
    ]


def ids_of_lines(folder: Path) -> set[str]:
    return {json.loads(line)["id"] for path in folder.glob("*.jsonl") for line in path.open()}


def ids_of_parts(folder: Path) -> set[str]:
    """``file:line`` of the documents that are left."""
    ids: set[str] = set()
    for path in folder.glob("*.arrow"):
        with pa.memory_map(str(path)) as source:
            ids.update(name.rpartition("/")[2] for name in pa.ipc.open_file(source).read_all()["id"].to_pylist())
    return ids


def write_words(folder: Path, names: list[str], target: Path) -> int:
    """The words of all documents, lower case, one space between them; their bytes."""
    target.mkdir()
    size = 0
    for name in names:
        for path in sorted((folder / name).glob("*.jsonl")):
            with (target / f"{name}-{path.name}").open("w") as out:
                for line in path.open():
                    document = json.loads(line)
                    document["text"] = " ".join(re.findall(r"\w+", document["text"].lower()))
                    size += len(document["text"].encode())
                    out.write(json.dumps(document, ensure_ascii=False) + "\n")
    return size


def measure(home: Path, sizes: Sizes, cluster: Cluster) -> dict[str, Any]:
    origin, texts = source_texts()
    say(f"writing documents made of {origin}")
    names = [f"slice-{number}" for number in range(sizes.slices)]
    bytes_ = sum(
        write_documents(
            *(home / name, texts),
            bytes_=sizes.slice_bytes,
            file_bytes=sizes.file_bytes,
            mean_characters=sizes.mean_characters,
            seed=n,
        )
        for n, name in enumerate(names)
    )
    rounds = [f"words-{number}" for number in range(sizes.minhash_rounds)]
    word_bytes = sum(write_words(home, names, home / name) for name in rounds)
    peer = Datatrove(CORES)
    bench = Bench(home, cluster, RayDataExecutor(), peer)
    bench.clean(bench.tasks(names[0], "warm", stages=RULES)[: 2 * CORES])  # what is imported is not timed
    cluster.look()
    idle, limit = cluster.peak_worker_bytes, MinHashSpec().memory_bytes
    figures: dict[str, Any] = {"bench": "data", "peer": "datatrove", "documents_of": origin, "bytes": bytes_}
    say("rules")
    figures |= bench.rules(names, bytes_)
    say("minhash")
    figures |= bench.minhash(rounds, word_bytes)
    say("tokenise and pack")
    figures |= bench.pack(names, bytes_)
    say("the whole preparation")
    figures |= bench.cost_growth(sizes, texts)
    return figures | {
        "cluster_start_seconds": round(cluster.start_seconds, 2),
        "datatrove_start_seconds": round(peer.start_seconds, 2),
        "peak_worker_bytes": cluster.peak_worker_bytes,
        "worker_limit_bytes": idle + limit,
        "datatrove_peak_process_bytes": peer.peak_bytes,
    }


def missed(figures: dict[str, Any]) -> dict[str, float]:
    """What is on the wrong side of its mark."""
    wrong = [name for name, least in AT_LEAST.items() if figures[name] < least]
    wrong += [name for name, most in AT_MOST.items() if figures[name] > most]
    wrong += ["peak_worker_bytes"] * (figures["peak_worker_bytes"] > figures["worker_limit_bytes"])
    return {name: figures[name] for name in wrong}


def main(sizes: Sizes | None = None) -> None:
    sizes = sizes or Sizes()
    with tempfile.TemporaryDirectory(prefix="manta-bench-") as directory:
        home = Path(directory)
        with cluster(CORES) as started:
            figures = measure(home, sizes, started)
        say("the loader")
        (home / "loader").mkdir()
        loader.shard_set(home / "loader", sizes.loader_shards)
        figures |= loader.figures(home / "loader")
    for name, rate in PUBLISHED.items():
        say(f"{name:8} {figures[f'{name}_mb_per_core_second']:7.2f} MB/s a core; published: {rate}")
    figures |= {
        "at_least": AT_LEAST,
        "at_most": AT_MOST,
        "missed": missed(figures),
        "cores": CORES,
        "units": {
            "vs_datatrove": "datatrove's CPU seconds / Manta's, the median over slices",
            "mb_per_core_second": "MB of text / CPU second of all processes",
            "cost_growth": "CPU seconds a MB of 200,000 documents / of 10,000",
            "bytes": "bytes",
            "seconds": "s",
        },
    }
    print(json.dumps(figures))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

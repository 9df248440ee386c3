"""Near duplicates in a preparation: dropped with a reason, split by cluster, the same bytes however it is carried out."""

import random
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from data.dedup.spec import ExactSpec, MinHashSpec, SimHashSpec
from data.executors import Executor, SerialExecutor
from data.prepare import Prepared, prepare
from data.spec import DataSpec, SourceSpec, TokenizerSpec
from tests.data.conftest import Preparation, data_spec, json_lines, texts, write
from tests.data.test_prepare import Backwards, StopAfter, files


def near_texts(count: int = 60) -> list[str]:
    """Different documents; every third comes again with two words changed and more of it."""
    longer = [text.split() * 3 for text in texts(count)]
    documents = [" ".join(f"{word}{i % 7}x{j}" for j, word in enumerate(words)) for i, words in enumerate(longer)]
    again = [documents[i].replace("Document", "Copy", 1) + " and a little more" for i in range(0, count, 3)]
    return documents + again


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    documents = near_texts()
    for part in range(4):
        write(tmp_path / f"{part}.jsonl", json_lines(documents[part::4]))
    return data_spec(str(tmp_path / "*.jsonl"), deduplicate="minhash", shard_documents=1, held_out_fraction=0.2)


def prepared_in(root: Path, spec: DataSpec, executor: Executor) -> Prepared:
    return prepare(spec, TokenizerSpec(vocab_size=300), root, executor, lambda progress: None)


@pytest.mark.parametrize("method", ["minhash", "simhash"])
def test_near_duplicates_are_dropped_with_their_reason(method: str, tmp_path: Path, preparation: Preparation) -> None:
    documents = near_texts()
    path = write(tmp_path / "a.jsonl", json_lines([*documents, documents[5].upper(), documents[6] + " \n"]))
    drops = preparation(data_spec(path, deduplicate=method)).manifest.drops
    assert drops["duplicate"] == 2
    assert (15 if method == "minhash" else 3) <= drops["near_duplicate"] <= 20
    assert preparation(data_spec(path)).manifest.drops == {"duplicate": 2}


@pytest.mark.parametrize("language", ["zh", "mul", "en"])
def test_near_duplicates_in_chinese_are_found_whatever_language_is_stated(
    language: str, tmp_path: Path, preparation: Preparation
) -> None:
    draw = random.Random(0)
    chinese = ["".join(draw.choices([chr(c) for c in range(0x4E00, 0x4E1E)], k=200)) for _ in range(20)]
    again = [f"转{text[:60]}，{text[60:-2]}。" for text in chinese]
    source = SourceSpec(path=write(tmp_path / "a.jsonl", json_lines(chinese + again)), language=language)
    assert preparation(data_spec(source, deduplicate="minhash")).manifest.drops == {"near_duplicate": 20}


def test_what_each_rule_keeps(tmp_path: Path, preparation: Preparation) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(near_texts()))
    kept = {
        keep: preparation(data_spec(path, deduplicate={"method": "minhash", "keep": keep})).manifest
        for keep in ("first", "longest", "all")
    }
    assert kept["all"].drops == {}
    assert kept["first"].drops == kept["longest"].drops
    assert kept["longest"].tokens("train") + kept["longest"].tokens("held_out") > (
        kept["first"].tokens("train") + kept["first"].tokens("held_out")
    )


def test_clusters_that_are_kept_are_on_one_side_of_the_split(tmp_path: Path) -> None:
    from data.corpus import Documents, clean_tasks
    from data.dedup.near import find_pairs
    from data.dedup.signatures import signature_path
    from data.sources import list_files
    from data.split import make_corpus
    from data.tasks import clean_files, read_texts

    path = write(tmp_path / "a.jsonl", json_lines(near_texts()))
    spec = data_spec(path, deduplicate={"method": "minhash", "keep": "all"}, held_out_fraction=0.4)
    tasks = list(clean_tasks(spec, [list_files(spec.sources[0], "")], tmp_path / "work"))
    results = list(map(clean_files, tasks))
    corpus = make_corpus(spec, tasks, results, [], tmp_path / "work", tmp_path / "dropped", SerialExecutor(), lambda: None)
    cleaned = Documents.of_parts([task.part for task in tasks], np.array([0]), tmp_path / "columns")
    files, counts = [signature_path(task.part) for task in tasks], cleaned.of_each_part()
    pairs = list(find_pairs(MinHashSpec(keep="all"), files, counts, tmp_path / "near", SerialExecutor(), lambda: None))
    everything = [text for task in tasks for text in read_texts(task.part, tuple(range(80)))]
    held = {text: bool(side) for text, side in zip(everything, corpus.held_out_N, strict=True)}
    joined = np.concatenate(pairs)
    assert len(joined) >= 15
    assert all(held[everything[a]] == held[everything[b]] for a, b in joined.tolist())
    assert corpus.clusters.counts == (0, len(joined))
    assert corpus.largest_cluster == 2
    assert {held[everything[a]] for a, _ in joined.tolist()} == {True, False}


@pytest.mark.parametrize("memory_bytes", [2**18, 2**28])
def test_the_order_of_work_does_not_matter(memory_bytes: int, spec: DataSpec, tmp_path: Path) -> None:
    given = MinHashSpec(memory_bytes=memory_bytes)
    spec = spec.model_copy(update={"deduplicate": given})
    one, other = (prepared_in(tmp_path / name, spec, e) for name, e in (("a", SerialExecutor()), ("b", Backwards())))
    assert one.manifest.drops["near_duplicate"] >= 15
    assert files(one.path) == files(other.path)


@pytest.mark.parametrize("tasks", [0, 3, 4, 5, 6, 8])
def test_a_stopped_preparation_is_finished_by_the_next(tasks: int, spec: DataSpec, tmp_path: Path) -> None:
    spec = spec.model_copy(update={"deduplicate": MinHashSpec(memory_bytes=2**18)})  # two tasks each round
    whole = prepared_in(tmp_path / "whole", spec, SerialExecutor())
    with pytest.raises(KeyboardInterrupt):
        prepared_in(tmp_path / "stopped", spec, StopAfter(tasks))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped").rglob("scratch/duplicates/near/*.i64")}
    assert len(before) == min(max(tasks - 4, 0), 4)
    with pytest.raises(KeyboardInterrupt):
        prepared_in(tmp_path / "stopped", spec, StopAfter(7))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert files(prepared_in(tmp_path / "stopped", spec, SerialExecutor()).path) == files(whole.path)


def test_methods_have_names_and_settings() -> None:
    names = {"none": None, "exact": ExactSpec(), "simhash": SimHashSpec(), "minhash": MinHashSpec()}
    given = {True: ExactSpec(), False: None, **names}
    for value, expected in given.items():
        spec = DataSpec.model_validate({"deduplicate": value})
        assert spec.deduplicate == expected
        assert DataSpec.model_validate_json(spec.model_dump_json()) == spec
    assert DataSpec() == DataSpec.model_validate({"deduplicate": True})
    assert DataSpec.model_validate({"deduplicate": {"method": "minhash", "ngram": 3}}).deduplicate == MinHashSpec(ngram=3)
    with pytest.raises(ValidationError, match="'minhsh' is no way to deduplicate; there are none, exact, simhash, minhash"):
        DataSpec.model_validate({"deduplicate": "minhsh"})
    with pytest.raises(ValidationError, match="3 blocks cannot show fingerprints that differ in 3 bits"):
        SimHashSpec(blocks=3)

"""Training documents that overlap a test set or the held-out split are found, and no others are."""

import gzip
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.contamination import Contamination, decontaminate
from data.corpus import Documents, clean_tasks
from data.decontamination import reference
from data.decontamination.benchmarks import list_benchmarks, read_benchmarks
from data.decontamination.spec import BenchmarkSpec, DecontaminateSpec
from data.decontamination.units import units
from data.errors import DocumentError, MantaError, NotEnoughData, SourceError
from data.executors import Executor, SerialExecutor
from data.prepare import Prepared, prepare
from data.report import ReferenceFigures, Report
from data.sources import list_files
from data.spec import DataSpec, SourceSpec, TokenizerSpec
from data.tasks import clean_files
from tests.data.conftest import Preparation, data_spec, json_lines, texts, write
from tests.data.test_prepare import Backwards, StopAfter, files

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
ENGLISH = [
    f"{a}{b}{c}" for a in ("st", "br", "cl", "m", "gr") for b in ("a", "ea", "ou", "i") for c in ("nd", "rk", "le", "st")
]
CHINESE = "".join(map(chr, range(0x4E00, 0x4E00 + 400)))


def english(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(ENGLISH, k=words))


def chinese(rng: random.Random, characters: int) -> str:
    return "".join(rng.choices(CHINESE, k=characters))


def looked_through(
    folder: Path,
    documents: Sequence[str],
    items: Sequence[str],
    held_out: Sequence[bool] | None = None,
    executor: Executor | None = None,
    **given: Any,
) -> Contamination:
    """What is found in documents, of items of a test set; without cleaning, tokenizer and packing."""
    executor = executor or SerialExecutor()
    test_sets = [{"path": write(folder / "exam.jsonl", json_lines(items))}] if items else []
    source = SourceSpec(path=write(folder / "train.jsonl", json_lines(documents)))
    asked = DecontaminateSpec.model_validate({"held_out": held_out is not None, "test_sets": test_sets, **given})
    data = DataSpec(sources=(source,), stages=(), decontaminate=asked)
    tasks = list(clean_tasks(data, [list_files(source, "")], folder / "parts"))
    list(map(clean_files, tasks))
    cleaned = Documents.of_parts([task.part for task in tasks], np.array([0]))
    listed = list_benchmarks(asked, lambda: None)
    sets = read_benchmarks(data, listed, folder / "items", executor, lambda: None)
    side = np.array(held_out if held_out is not None else [False] * len(documents))
    return decontaminate(asked, sets, cleaned, side, folder / "overlaps", executor, lambda: None)


def dropped(contamination: Contamination) -> list[int]:
    return np.flatnonzero(~contamination.keep).tolist()


def _spaced(text: str) -> str:
    return "\n\n".join(" \t".join(text.split()[i : i + 7]) for i in range(0, len(text.split()), 7))


CHANGES: dict[str, Callable[[str], str]] = {
    "verbatim": lambda text: text,
    "upper case": str.upper,
    "title case": str.title,
    "white space": _spaced,
    "a comma behind every word": lambda text: ", ".join(text.split()),
    "quoted and dashed": lambda text: "“" + " — ".join(text.split()) + "”",
    "emphasised": lambda text: "_" + "_ **".join(text.split()) + "**",
    "lines of a quotation": lambda text: "> " + _spaced(text).replace("\n\n", "\n> "),
    "full-width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
}
CHINESE_CHANGES: dict[str, Callable[[str], str]] = {
    "verbatim": lambda text: text,
    "spaces": " ".join,
    "lines": lambda text: "\n".join(text[i : i + 9] for i in range(0, len(text), 9)),
    "other signs": lambda text: "。".join(text[i : i + 5] for i in range(0, len(text), 5)) + "！",
    "brackets": lambda text: "「" + "」（".join(text[i : i + 3] for i in range(0, len(text), 3)) + "）",
}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_planted_item_is_found_and_nothing_else(language: str, tmp_path: Path) -> None:
    rng = random.Random(7)
    make, changes, lengths = (
        (english, CHANGES, (8, 9, 12, 13, 14, 25, 60, 300))
        if language == "en"
        else (chinese, CHINESE_CHANGES, (12, 13, 19, 20, 21, 50, 90, 400))
    )
    items, planted = [], []
    for length in lengths:
        for change in changes.values():
            items.append(make(rng, length))
            before, after = english(rng, rng.randint(1, 900)), chinese(rng, rng.randint(1, 900))
            planted.append(
                rng.choice(["{0}\n{1} {2}", "{1}\n{0} {2}", "{0}; {2}\n{1}"]).format(before, change(items[-1]), after)
            )
    clean = [english(rng, 300) + chinese(rng, 300) for _ in planted]
    found = looked_through(tmp_path, [*planted, *clean], items)
    assert dropped(found) == list(range(len(planted)))
    assert found.count.drops == {"test_set_overlap": len(planted)}
    assert {example.detail for example in found.count.examples["test_set_overlap"]} == {"1.00 of exam"}
    [figures] = found.figures
    assert (figures.items, figures.found, figures.dropped, figures.too_short) == (len(items), len(items), len(planted), 0)


def test_what_counts_for_nothing_is_not_there() -> None:
    assert (
        units("Don’t -- stop_here, 'MR' O’Neill!")
        == units("dont stop here mr oneill")
        == ["dont", "stop", "here", "mr", "oneill"]
    )
    assert units("Ｆｕｌｌ　Ｗｉｄｔｈ１２") == ["full", "width12"]
    assert units("中文and英文，ｶﾅ。") == ["中", "文", "and", "英", "文", "カ", "ナ"]
    assert units("ASCII 12") == units("ASCII 12—")


@pytest.mark.parametrize(("words", "goes"), [(32, True), (31, False), (60, True), (13, False)])
def test_half_of_an_item_is_too_much(words: int, goes: bool, tmp_path: Path) -> None:
    rng = random.Random(1)
    item = english(rng, 52).split()  # 40 n-grams, of which w words have w - 12
    document = f"{english(rng, 100)} {' '.join(item[:words])} {english(rng, 100)}"
    assert dropped(looked_through(tmp_path, [document], [" ".join(item)])) == ([0] if goes else [])


def test_a_paragraph_out_of_a_long_item_is_too_much(tmp_path: Path) -> None:
    rng = random.Random(2)
    item = english(rng, 2000).split()
    documents = [" ".join(item[500:560]), " ".join(item[500:560]) + " " + english(rng, 500)]
    assert dropped(looked_through(tmp_path / "a", documents, [" ".join(item)])) == [0]
    assert dropped(looked_through(tmp_path / "b", documents, [" ".join(item)], min_overlap=0)) == [0, 1]


def test_items_too_short_to_tell_are_counted_and_not_looked_for(tmp_path: Path) -> None:
    rng = random.Random(3)
    items = [english(rng, 7), chinese(rng, 11), english(rng, 8)]
    found = looked_through(tmp_path, [f"{english(rng, 20)} {item} {english(rng, 20)}" for item in items], items)
    assert dropped(found) == [2]
    assert found.figures == (ReferenceFigures(name="exam", items=3, too_short=2, ngrams=1, found=1, dropped=1),)


def test_a_formula_of_very_many_items_is_no_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    monkeypatch.setattr(reference, "MOST_ITEMS", 20)
    formula = english(rng, 40)
    items = [f"{formula} {english(rng, 20)}" for _ in range(30)]
    documents = [f"{english(rng, 99)} {formula} {english(rng, 99)}", f"{english(rng, 99)} {items[3]}"]
    for memory_bytes in (2**18, 2**28):
        found = looked_through(tmp_path / str(memory_bytes), documents, items, memory_bytes=memory_bytes)
        assert dropped(found) == [1]
        assert found.figures[0].ngrams == 30 * 20


WORDS_OF_FEW = st.lists(st.sampled_from(["ab", "cd", "ef", "中", "文"]), min_size=1, max_size=14).map(" ".join)


def _naive(document: str, item: str, words: int, characters: int) -> float:
    """The definition, by sets of n-grams."""
    mine, other = units(document), units(item)
    spaceless = 2 * sum(unit in "中文" for unit in other) > len(other)
    longest, shortest = (characters, min(characters, 12)) if spaceless else (words, min(words, 8))
    n = min(longest, len(other))
    if n < shortest:
        return 0
    one, two = ({tuple(each[i : i + n]) for i in range(len(each) - n + 1)} for each in (mine, other))
    return len(one & two) / min(len(one), len(two)) if one else 0


@given(
    documents=st.lists(WORDS_OF_FEW, min_size=1, max_size=6),
    items=st.lists(WORDS_OF_FEW.filter(lambda text: len(text) > 9), min_size=1, max_size=6),
    lengths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    min_overlap=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    partitions=st.sampled_from([128, 2**14]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_what_the_definition_says(
    documents: list[str],
    items: list[str],
    lengths: tuple[int, int],
    min_overlap: float,
    partitions: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("data.decontamination.overlaps.RECORD_BYTES", partitions)  # more memory a record: more tasks
        asked: dict[str, Any] = {
            "ngram": lengths[0],
            "character_ngram": lengths[1],
            "min_overlap": min_overlap,
            "memory_bytes": 2**18,
        }
        found = looked_through(tmp_path_factory.mktemp("overlaps"), documents, items, **asked)
    shares = [max(_naive(document, item, *lengths) for item in items) for document in documents]
    assert dropped(found) == [i for i, share in enumerate(shares) if share >= min_overlap and share > 0]


class Measured:
    """Serial, and remembers the most memory that a task of some name took."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.tasks: dict[str, int] = {}

    def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
        for task in shards:
            tracemalloc.start()
            try:
                result = fn(task)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            self.peaks[fn.__name__] = max(self.peaks.get(fn.__name__, 0), peak)
            self.tasks[fn.__name__] = self.tasks.get(fn.__name__, 0) + 1
            yield result


def test_a_task_stays_within_its_memory_however_much_is_held_out(tmp_path: Path) -> None:
    rng = random.Random(5)
    documents = [english(rng, 400) for _ in range(400)]
    executor, memory = Measured(), 2**22
    looked_through(tmp_path, documents, [], [True] * 399 + [False], executor, memory_bytes=memory)
    assert executor.tasks["gather"] > 3
    assert executor.tasks["merge"] > 3
    assert executor.peaks["merge"] <= memory
    assert executor.peaks["gather"] <= memory


def _covered(one: str, other: str) -> float:
    """The share of the shorter one's units that lie in runs common to both."""
    blocks = SequenceMatcher(None, units(one), units(other), autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks if block.size >= 5) / min(len(units(one)), len(units(other)))


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus is not here")
@pytest.mark.parametrize(("name", "leaks"), [("wiki-en", 0), ("plays-en", 0), ("wiki-zh", 0), ("poems-zh", 15)])
def test_no_clean_text_goes(name: str, leaks: int, tmp_path: Path) -> None:
    """A fifth of real text against the rest. Some poems are there twice, from two collections, a few words changed."""
    lines = gzip.decompress((CORPUS / f"{name}.jsonl.gz").read_bytes()).splitlines()[:2500]
    documents = [json.loads(line)["text"] for line in lines]
    side = [i % 5 == 0 for i in range(len(documents))]
    found = dropped(looked_through(tmp_path, documents, [], side))
    squeezed = {text: "".join(units(text)) for i, text in enumerate(documents) if side[i]}
    for number in found:
        mine = "".join(units(documents[number]))
        near = [text for text, other in squeezed.items() if any(mine[i : i + 20] in other for i in range(len(mine) - 19))]
        assert max(_covered(documents[number], text) for text in near) >= 0.5
    assert len(found) == leaks


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    """Two cells in several files; a test set of which three items are in the text of the first cell, one in the second."""
    exam = [f"Question {i}: " + text for i, text in enumerate(texts(20, seed=70, words=60))]
    for part in range(4):
        planted = [f"{texts(1, seed=80 + part)[0]}\n{exam[part].upper()}!\n{texts(1, seed=90)[0]}"] if part < 3 else []
        write(tmp_path / "en" / f"{part}.jsonl", json_lines([*texts(40, seed=part), *planted]))
        write(tmp_path / "code" / f"{part}.jsonl", json_lines(texts(25, seed=part + 9)))
    write(tmp_path / "code" / "9.jsonl", json_lines([exam[9] + " and more"]))
    return data_spec(
        SourceSpec(path=str(tmp_path / "en" / "*.jsonl")),
        SourceSpec(path=str(tmp_path / "code" / "*.jsonl"), domain="code"),
        shard_documents=1,
        held_out_fraction=0.2,
        decontaminate={
            "test_sets": [{"path": write(tmp_path / "exam.jsonl", json_lines(exam, "question")), "text_field": "question"}]
        },
    )


def prepared_in(root: Path, spec: DataSpec, executor: Executor) -> Prepared:
    return prepare(spec, TokenizerSpec(vocab_size=300), root, executor, lambda progress: None)


def test_the_report_tells_what_overlapped_what(spec: DataSpec, preparation: Preparation) -> None:
    prepared = preparation(spec)
    report = Report.read(prepared.path)
    step = report.steps[-1]
    assert (step.name, step.came.documents) == ("decontaminate", 264)
    assert prepared.manifest.drops["test_set_overlap"] == step.drops["test_set_overlap"] >= 1
    assert (
        report.kept.documents
        == 264 - step.dropped
        == prepared.manifest.documents("train") + prepared.manifest.documents("held_out")
    )
    for example in step.examples["test_set_overlap"]:
        assert example.id.endswith(("0.jsonl:41", "1.jsonl:41", "2.jsonl:41", "9.jsonl:1"))
        assert example.detail == "1.00 of exam"
    exam, held_out = report.decontamination
    assert (exam.name, exam.items, held_out.name) == ("exam", 20, "held_out")
    # An item may lie in a held-out document, which stays.
    assert exam.dropped == step.drops["test_set_overlap"] <= exam.found <= 4
    assert held_out.items == prepared.manifest.documents("held_out")
    without = Report.read(preparation(spec.model_copy(update={"decontaminate": None})).path)
    assert without.kept.documents == 264
    assert without.decontamination == ()


def test_near_duplicates_of_what_is_held_out_go(tmp_path: Path, preparation: Preparation) -> None:
    documents = texts(60, words=200)
    again = [f"{text} and a few words more {i}" for i, text in enumerate(documents)]
    path = write(tmp_path / "a.jsonl", json_lines([*documents, *again]))
    report = Report.read(preparation(data_spec(path, held_out_fraction=0.2, decontaminate=True)).path)
    [held_out] = report.decontamination
    pairs_apart = report.steps[-1].drops["held_out_overlap"]
    assert pairs_apart == held_out.dropped >= 10
    assert held_out.found == pairs_apart
    assert report.steps[-1].examples["held_out_overlap"][0].detail.endswith(" of held_out")


@pytest.mark.parametrize("memory_bytes", [2**18, 2**28])
def test_the_order_of_work_does_not_matter(memory_bytes: int, spec: DataSpec, tmp_path: Path) -> None:
    assert spec.decontaminate is not None
    asked = spec.decontaminate.model_copy(update={"memory_bytes": memory_bytes})
    spec = spec.model_copy(update={"decontaminate": asked})
    one, other = (prepared_in(tmp_path / name, spec, e) for name, e in (("a", SerialExecutor()), ("b", Backwards())))
    assert one.manifest.drops["test_set_overlap"] >= 1
    assert files(one.path) == files(other.path)


# One task reads the test set, nine clean, two gather, one merges, nine scan.
@pytest.mark.parametrize("tasks", [1, 11, 12, 17])
def test_a_stopped_preparation_is_finished_by_the_next(tasks: int, spec: DataSpec, tmp_path: Path) -> None:
    whole = prepared_in(tmp_path / "whole", spec, SerialExecutor())
    with pytest.raises(KeyboardInterrupt):
        prepared_in(tmp_path / "stopped", spec, StopAfter(tasks))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped").rglob("scratch/overlaps/*.json")}
    done = min(max(tasks - 10, 0), 3)
    assert len([path for path in before if path.stem.startswith(("gathered", "table"))]) == done
    assert len([path for path in before if path.stem.startswith("scanned")]) == max(tasks - 13, 0)
    with pytest.raises(KeyboardInterrupt):
        prepared_in(tmp_path / "stopped", spec, StopAfter(18))
    assert {path: path.stat().st_mtime_ns for path in before if path.stem != "reference"} == {
        path: then for path, then in before.items() if path.stem != "reference"
    }
    assert files(prepared_in(tmp_path / "stopped", spec, SerialExecutor()).path) == files(whole.path)


def test_another_test_set_is_another_data_set(spec: DataSpec, tmp_path: Path, preparation: Preparation) -> None:
    first = preparation(spec)
    write(tmp_path / "exam.jsonl", json_lines(texts(9, seed=50), "question"))
    second = preparation(spec)
    assert first.path != second.path
    assert "test_set_overlap" not in second.manifest.drops


BAD: dict[str, tuple[bytes | None, dict[str, str], type[MantaError], str, str]] = {
    "missing": (None, {}, SourceError, "does not exist", "path"),
    "empty": (b"", {}, SourceError, "is empty", "path"),
    "blank": (b"\n\n", {}, SourceError, "holds no item", "path"),
    "another field": (json_lines(texts(3), "question"), {}, DocumentError, "no field 'text'; it has question", "text_field"),
    "no text": (json_lines([7]), {}, DocumentError, "field 'text' is int", "text_field"),
    "broken": (b"{\n", {}, DocumentError, "not JSON", "path"),
    "too short": (json_lines(["one two three", "中文"]), {}, SourceError, "no item is long enough", "path"),
}


@pytest.mark.parametrize(("content", "settings", "error", "message", "field"), BAD.values(), ids=BAD)
def test_a_bad_test_set_is_named(
    content: bytes | None,
    settings: dict[str, str],
    error: type[MantaError],
    message: str,
    field: str,
    tmp_path: Path,
    preparation: Preparation,
) -> None:
    good = {"path": write(tmp_path / "good.jsonl", json_lines(texts(5, seed=4)))}
    bad = {"path": str(tmp_path / "bad.jsonl"), **settings}
    if content is not None:
        write(tmp_path / "bad.jsonl", content)
    train = write(tmp_path / "a.jsonl", json_lines(texts(30)))
    asked = data_spec(train, decontaminate={"test_sets": [good, bad]}, on_bad_document="drop")
    with pytest.raises(error, match=r"bad\.jsonl") as raised:
        preparation(asked)
    assert message in raised.value.detail
    assert raised.value.pointer == f"/data_pipeline/decontaminate/test_sets/1/{field}"


def test_a_cell_that_is_emptied_is_an_error_that_names_the_step(tmp_path: Path, preparation: Preparation) -> None:
    leaked = texts(12, seed=5, words=60)
    asked = data_spec(
        write(tmp_path / "a.jsonl", json_lines(texts(30))),
        SourceSpec(path=write(tmp_path / "b.jsonl", json_lines(leaked)), domain="books"),
        decontaminate={"test_sets": [{"path": write(tmp_path / "exam.jsonl", json_lines(leaked))}]},
        held_out_fraction=0.1,
    )
    with pytest.raises(
        NotEnoughData, match=r"no training document is left of en/books: decontamination took the last \d+"
    ) as raised:
        preparation(asked)
    assert raised.value.pointer == "/data_pipeline/decontaminate"


def test_settings_have_short_forms() -> None:
    for value, expected in {True: DecontaminateSpec(), False: None, "none": None, None: None}.items():
        spec = DataSpec.model_validate({"decontaminate": value})
        assert spec.decontaminate == expected
        assert DataSpec.model_validate_json(spec.model_dump_json()) == spec
    assert BenchmarkSpec(path="s3://sets/gsm8k.test.jsonl.gz").title == "gsm8k"
    assert BenchmarkSpec(path="a.jsonl", name="GSM").title == "GSM"
    with pytest.raises(ValidationError, match="nothing to compare with"):
        DecontaminateSpec(held_out=False)


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_gives_the_same_bytes(spec: DataSpec, tmp_path: Path) -> None:
    from data.ray_executor import RayDataExecutor

    one, other = (prepared_in(tmp_path / name, spec, e) for name, e in (("a", SerialExecutor()), ("b", RayDataExecutor())))
    assert one.manifest.drops["test_set_overlap"] >= 1
    assert files(one.path) == files(other.path)

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

from data.corpus import Documents, clean_tasks
from data.decontamination import reference
from data.decontamination.benchmarks import list_benchmarks, read_benchmarks
from data.decontamination.choose import Contamination, decontaminate
from data.decontamination.spec import DecontaminateSpec
from data.decontamination.units import units
from data.digests import Digests
from data.executors import Executor, SerialExecutor
from data.report import ReferenceFigures
from data.sources import list_files
from data.spec import DataSpec, SourceSpec
from data.tasks import clean_files
from tests.data.conftest import json_lines, write

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
    cleaned = Documents.of_parts([task.part for task in tasks], np.array([0]), folder / "columns")
    listed = list_benchmarks(asked, Digests())
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
    "soft hyphens": lambda text: "\u00ad".join(text),
    "zero-width spaces": lambda text: "\u200b".join(text),
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
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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

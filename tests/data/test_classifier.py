"""A classifier learns, is calibrated where it is on, and is the same file however often it is trained."""

import gzip
import hashlib
import json
import random
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.classifier.examples import LabelledText, Sample, TrainingError
from data.classifier.features import BUCKETS, Features, features_of
from data.classifier.fit import Examples, calibration_error, fit
from data.classifier.model import FORMAT, Classifier, LanguageModel
from data.classifier.spec import TrainingSpec
from data.classifier.training import ClassifierSource, list_classifiers, train
from data.dedup.shingles import unit_hashes
from data.documents import Document
from data.errors import DocumentError, SourceError
from data.selection import text_hash
from data.spec import DataSpec
from data.stages.base import Drop
from data.stages.registry import CHANGES_TEXT, StageSpec, make_stage
from tests.data.conftest import WORDS, write

GOOD, POOR = WORDS[:7], WORDS[7:]
SPEC = TrainingSpec()


def features(text: str, language: str = "en") -> Features:
    return features_of(unit_hashes(text, language), language == "zh")


def drawn(count: int, seed: int, words: Sequence[str] = (*GOOD, *POOR), joint: str = " ") -> tuple[list[str], list[float]]:
    """Texts, and how likely each is good: its share of good words, which is anything from 0 to 1."""
    rng = random.Random(seed)
    half, shares = len(words) // 2, [rng.random() for _ in range(count)]
    texts = [
        joint.join(rng.choice(words[:half] if rng.random() < share else words[half:]) for _ in range(60)) for share in shares
    ]
    return texts, shares


def examples(texts: Sequence[str], answers: dict[str, Sequence[bool]], language: str = "en") -> Examples:
    return Examples(
        hash_D=np.array([text_hash(text) for text in texts], np.uint64),
        features=[features(text, language) for text in texts],
        heads=tuple(answers),
        answer_DH=np.array(list(answers.values()), np.bool_).T,
    )


def bernoulli(shares: Sequence[float], seed: int) -> list[bool]:
    rng = random.Random(seed)
    return [rng.random() < share for share in shares]


@pytest.mark.parametrize(("language", "words", "joint"), [("en", (*GOOD, *POOR), " "), ("zh", "春江潮水连海平上明月共", "")])
def test_it_says_how_likely_what_it_cannot_know_is(language: str, words: Sequence[str], joint: str) -> None:
    texts, shares = drawn(3000, 1, words, joint)
    classifier = fit({language: examples(texts, {"good": bernoulli(shares, 2)}, language)}.items(), SPEC, together=True)
    model = classifier.model(language)
    assert model is not None
    assert classifier.figures.languages[0].heads[0].calibration_error <= 0.05
    others, true = drawn(2000, 3, words, joint)
    said = model.probabilities([features(text, language) for text in others])[:, 0]
    assert np.abs(said - true).mean() < 0.12
    assert calibration_error(said, np.array(bernoulli(true, 4))) <= 0.05


def test_labels_that_are_pure_chance_are_answered_with_their_share() -> None:
    texts, _ = drawn(4000, 1)
    classifier = fit({"en": examples(texts, {"good": bernoulli([0.3] * 4000, 5)})}.items(), SPEC, together=True)
    model = classifier.model("en")
    assert model is not None
    said = model.probabilities([features(text) for text in drawn(500, 6)[0]])[:, 0]
    assert abs(said.mean() - 0.3) < 0.05
    assert 0.4 < classifier.figures.languages[0].heads[0].ranking < 0.6


def test_a_language_whose_answers_are_not_calibrated_goes_without() -> None:
    texts, shares = drawn(400, 1)
    strict = TrainingSpec(max_calibration_error=0.001)
    classifier = fit({"en": examples(texts, {"good": bernoulli(shares, 2)})}.items(), strict, together=True)
    [figures] = classifier.figures.languages
    assert classifier.models == {}
    assert figures.off == "the calibration error is above 0.001"
    assert figures.heads[0].calibration_error > 0.001


@pytest.mark.parametrize("together", [True, False])
def test_a_question_that_is_badly_answered_takes_the_others_along_only_if_told(together: bool) -> None:
    texts, shares = drawn(3000, 1)
    clear = [share > 0.5 for share in shares]
    both = examples(texts, {"clear": clear, "chance": bernoulli(shares, 2)})
    found = fit({"en": both}.items(), SPEC, together=True).figures.languages[0].heads
    limit = sum(head.calibration_error for head in found) / 2
    classifier = fit({"en": both}.items(), TrainingSpec(max_calibration_error=limit), together=together)
    model, [figures] = classifier.model("en"), classifier.figures.languages
    assert sorted(bool(head.off) for head in figures.heads) == [False, True]
    if together:
        assert model is None
        assert figures.off
    else:
        assert model is not None
        assert model.heads == tuple(head.name for head in figures.heads if not head.off)


def test_questions_and_languages_with_few_examples_go_without() -> None:
    texts, shares = drawn(2000, 1)
    rare = [number < 30 for number in range(2000)]
    english = examples(texts, {"good": bernoulli(shares, 2), "rare": rare})
    classifier = fit(
        {"en": english, "fr": examples(texts[:60], {"good": bernoulli(shares[:60], 2)})}.items(), SPEC, together=False
    )
    model = classifier.model("en-GB")
    assert model is not None
    assert model.heads == ("good",)
    assert classifier.model("fr") is None
    assert classifier.figures.languages[1].off == "each question has fewer than 50 examples on one of its sides"


def test_a_score_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(-(1 << 20), 1 << 20, (BUCKETS, 3)).astype(np.int32)
    model = LanguageModel(("a", "b", "c"), weights, rng.normal(size=(2, 3)), rng.normal(size=3))
    rows = [Features(rng.integers(0, BUCKETS, size), rng.normal(size=2)) for size in (1, 7, 5000, 300, 1, 90)]
    alone = np.concatenate([model.probabilities([row]) for row in rows])
    assert np.array_equal(model.probabilities(rows), alone)
    assert np.array_equal(model.probabilities(rows[::-1])[::-1], alone)


def test_a_classifier_is_read_as_it_was_written(tmp_path: Path) -> None:
    texts, shares = drawn(1000, 1)
    made = fit({"en": examples(texts, {"a": bernoulli(shares, 2), "b": bernoulli(shares, 3)})}.items(), SPEC, together=False)
    path = Path(write(tmp_path / "a.safetensors", made.dump()))
    read = Classifier.load(path, "")
    assert read.dump() == made.dump()
    rows = [features(text) for text in texts[:9]]
    assert np.array_equal(read.models["en"].probabilities(rows), made.models["en"].probabilities(rows))


@pytest.mark.parametrize("damage", ["cut", "edited", "other", "gone", "version"])
def test_a_file_that_is_no_classifier_is_named(damage: str, tmp_path: Path) -> None:
    texts, shares = drawn(1000, 1)
    whole = fit({"en": examples(texts, {"a": bernoulli(shares, 2)})}.items(), SPEC, together=True).dump()
    broken = {
        "cut": whole[:-7],
        "edited": whole[:-1] + bytes([whole[-1] ^ 1]),
        "other": b"{}",
        "gone": b"",
        "version": whole.replace(f'{{\\"format\\": {FORMAT}'.encode(), b'{\\"format\\": 9'),
    }[damage]
    path = Path(write(tmp_path / "a.safetensors", broken))
    if damage == "gone":
        path.unlink()
    stated = "0" * 32 if damage == "edited" else ""
    with pytest.raises(SourceError, match=r"a\.safetensors"):
        Classifier.load(path, stated)


def grade_lines(count: int, seed: int, language: str = "en") -> bytes:
    texts, shares = drawn(count, seed)
    lines = [{"text": text, "grade": round(4 * share), "language": language} for text, share in zip(texts, shares, strict=True)]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def source(path: str, **settings: Any) -> ClassifierSource:
    stage = {"stage": "grade", "training": {"labelled": [{"path": path}], **settings}}
    spec = DataSpec.model_validate({"sources": [{"path": "unused.txt"}], "stages": ["normalise", stage]})
    [listed] = list_classifiers(spec)
    return listed


def test_the_same_examples_give_the_same_bytes_in_any_process_and_number_of_threads(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", grade_lines(1200, 1))
    script = (
        "import sys, hashlib\n"
        "from tests.data.test_classifier import source, train\n"
        "print(hashlib.sha256(train(source(sys.argv[1])).dump()).hexdigest())\n"
    )
    threads = {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3", "PYTHONHASHSEED": "3"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, path]
    other = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=threads)
    assert other.stdout.strip() == hashlib.sha256(train(source(path)).dump()).hexdigest()


def test_the_order_of_examples_and_files_does_not_matter(tmp_path: Path) -> None:
    lines = grade_lines(900, 1).splitlines(keepends=True)
    one = train(source(write(tmp_path / "a.jsonl", b"".join(lines))))
    write(tmp_path / "b" / "1.jsonl", b"".join(lines[::-2]))
    write(tmp_path / "b" / "2.jsonl.gz", b"".join(lines[::2]))
    assert train(source(str(tmp_path / "b" / "*.jsonl*"))).dump() == one.dump()


@pytest.mark.parametrize(("most", "characters"), [(100, 10**6), (10**6, 40_000)])
def test_of_more_examples_than_wanted_the_same_are_taken_in_any_order(most: int, characters: int) -> None:
    every = [LabelledText(text, "en", number) for number, text in enumerate(drawn(700, 1)[0])]
    samples = []
    for order in (every, every[::-1]):
        samples.append(Sample(most, characters))
        for example in order:
            samples[-1].add(example)
    taken = samples[0].lowest()
    assert taken == samples[1].lowest()
    hashes = sorted(text_hash(example.text) for example in every)
    assert [hash_ for hash_, _, _ in taken] == hashes[: len(taken)]
    size = sum(len(text) for _, text, _ in taken)
    assert len(taken) == most or characters - 1000 < size <= characters  # a text is shorter than 1,000


BROKEN: dict[str, tuple[bytes, type[Exception], str]] = {
    "not JSON": (b'{"text": "a", "grade": 1}\n{"text"\n', DocumentError, r"a\.jsonl:2: not JSON"),
    "not an object": (b"[1]\n", DocumentError, r"a\.jsonl:1: it is not an object"),
    "no text": (b'{"txt": "a", "grade": 1}\n', DocumentError, r"a\.jsonl:1: no text in a field 'text'; it has grade, txt"),
    "no grade": (b'\n{"text": "a"}\n', DocumentError, r"a\.jsonl:2: field 'grade' is None"),
    "a grade too high": (b'{"text": "a", "grade": 5}\n', DocumentError, r"5, not a whole number from 0 to 4"),
    "a grade that is true": (b'{"text": "a", "grade": true}\n', DocumentError, r"True, not a whole number"),
    "a language that is a number": (b'{"text": "a", "grade": 1, "language": 3}\n', DocumentError, r"its language is 3"),
    "not UTF-8": (b'{"text": "\xff", "grade": 1}\n', DocumentError, r"a\.jsonl:1: not UTF-8"),
    "half of a pair": (b'{"text": "\\ud800", "grade": 1}\n', DocumentError, r"a\.jsonl:1: not UTF-8"),
    "nested": (b"[" * 100_000 + b"\n", DocumentError, r"a\.jsonl:1: nested too deep"),
    "empty": (b"", SourceError, "is empty"),
    "one kind only": (
        b"".join(b'{"text": "line %d", "grade": 3}\n' % number for number in range(500)),
        TrainingError,
        r"no classifier can be trained of these examples \(500 of en\)",
    ),
    "too few": (grade_lines(60, 1), TrainingError, r"a question needs 50 on each of its sides"),
}


@pytest.mark.parametrize(("content", "error", "message"), BROKEN.values(), ids=BROKEN)
def test_examples_that_are_no_use_are_named(content: bytes, error: type[Exception], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", content)
    with pytest.raises(error, match=message) as raised:
        train(source(path))
    at = "/data_pipeline/stages/1/training"
    assert getattr(raised.value, "pointer", None) == (at if error is TrainingError else f"{at}/labelled/0/path")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda packed: packed[:-2000],
    "corrupt": lambda packed: packed[:4000] + bytes(500) + packed[4500:],
    "not compressed": lambda packed: grade_lines(300, 1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_compressed_file_that_is_damaged_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(damage(gzip.compress(grade_lines(300, 1))))
    with pytest.raises(DocumentError, match=r"a\.jsonl\.gz: cannot be decompressed") as raised:
        train(source(str(path)))
    assert raised.value.pointer == "/data_pipeline/stages/1/training/labelled/0/path"


def test_examples_that_are_not_there_are_named_when_they_are_listed(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist") as raised:
        source(str(tmp_path / "a.jsonl"))
    assert raised.value.pointer == "/data_pipeline/stages/1/training/labelled/0/path"


def test_text_that_has_no_labels_is_named_when_it_is_listed() -> None:
    with pytest.raises(SourceError, match="stdlib:prose has no labels") as raised:
        source("stdlib:prose")
    assert raised.value.pointer == "/data_pipeline/stages/1/training/labelled/0/path"


CHANGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "a setting": lambda path: {"min_examples": 60},
    "the content": lambda path: {"labelled": [{"path": write(path, grade_lines(300, 2))}]},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_examples_are_another_classifier(change: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = source(write(path, grade_lines(300, 1)))
    assert source(str(path)).identity == first.identity
    settings = change(path)
    settings.pop("labelled", None)
    assert source(str(path), **settings).identity != first.identity


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_a_mean_distance(pairs: list[tuple[float, bool]]) -> None:
    said, true = (np.array(column) for column in zip(*pairs, strict=True))
    bins: dict[int, list[tuple[float, bool]]] = {}
    for probability, answer in pairs:
        bins.setdefault(min(int(probability * 10), 9), []).append((probability, answer))
    expected = sum(abs(sum(p for p, _ in each) - sum(a for _, a in each)) for each in bins.values()) / len(pairs)
    assert calibration_error(said, true) == pytest.approx(expected, abs=1e-12)


def test_it_is_known_which_stages_change_texts() -> None:
    texts = [
        "Cafe\u0301\r\n in the harbour.",
        "The cafÃ© in the harbour is the one that everybody knows.",
        "\n".join(["The lantern in the harbour is lit when the river is quiet.", "Home"] * 6),
        "Write to anna.berg@harbour-house.org before winter comes to the meadow and the river.",
        "老渔夫在清晨的码头上看海。\r\n请写信给anna.berg@harbour-house.org。",
    ]
    changing = set()
    for kind in get_args(get_args(StageSpec)[0]):
        for text in texts:
            document = Document(text, "", "en", "web")
            outcome = make_stage(kind())(document)
            if not isinstance(outcome, Drop) and outcome.text != text:
                changing.add(kind)
    assert changing == CHANGES_TEXT


def test_a_text_is_counted_as_it_comes_and_its_ngrams_are_not_kept() -> None:
    """Memory goes with the different n-grams of each text, not with all of all."""
    texts, shares = drawn(300, 1)
    made: list[weakref.ref[Features]] = []

    class Watched(Features):
        __slots__ = ("__weakref__",)

    def one_by_one() -> Iterator[Features]:
        for text in texts:
            one = Watched(features(text).bucket_N, np.zeros(0))
            made.append(weakref.ref(one))
            assert sum(ref() is not None for ref in made) <= 2  # this one, and the one before it until it is replaced
            yield one

    lazily = replace(examples(texts, {"good": bernoulli(shares, 2)}), features=one_by_one())
    assert fit([("en", lazily)], SPEC, together=True).figures.languages[0].examples == 300


def test_a_text_without_words_has_features() -> None:
    for language in ("en", "zh"):
        assert len(features("", language).bucket_N) == len(features("...", language).bucket_N) == 1

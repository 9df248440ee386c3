"""Grades by classifiers: on real text, and in a preparation that trains them."""

import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data import stdlib
from data.classifier.fit import calibration_error
from data.classifier.model import Classifier
from data.classifier.training import list_classifiers, train
from data.documents import Document
from data.errors import DocumentError, MantaError, SourceError
from data.executors import Executor, SerialExecutor
from data.files import checksum
from data.prepare import Prepared, prepare
from data.report import Report
from data.spec import DataSpec, TokenizerSpec
from data.stages.grade import Grade, GradeLabels, GradeSpec
from data.stages.libraries import LibraryMissing
from data.stages.registry import given_stages
from tests.data.conftest import WORDS, data_spec, write
from tests.data.test_grade import MENU, PROSE, graded, level
from tests.data.test_prepare import Backwards, files

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"


# Real text, and the same text spoilt.


def pieces(language: str) -> list[str]:
    """Passages of some hundred characters, the same everywhere that has the corpus."""
    names = {"en": ("wiki-en.jsonl.gz",), "zh": ("wiki-zh.jsonl.gz", "poems-zh.jsonl.gz")}[language]
    found = []
    for name in names if CORPUS.is_dir() else ():
        with gzip.open(CORPUS / name, "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line in lines]
        if name.startswith("poems"):
            found += ["\n".join(texts[i : i + 2]) for i in range(0, 2400, 2)]
        else:
            found += [line.strip() for text in texts for line in text.split("\n")]
    if not found and language == "en":
        parts = (text for name in stdlib.modules("stdlib:prose") for _, text in stdlib.texts("stdlib:prose", name))
        found = [part.strip() for text in parts for part in text.split("\n\n")]
    return [text[:2000] for text in found if len(text) > (200 if language == "en" else 40)]


def spoilt(text: str, language: str, rng: random.Random) -> str:
    """Shuffled, half replaced, or half a menu: some plainly, some little."""
    units = text.split() if language == "en" else list(text)
    joint = " " if language == "en" else ""
    boilerplate = MENU[language].split("\n")
    kind, share = rng.randrange(3), rng.uniform(0.1, 1)
    chosen = [i for i in range(len(units)) if rng.random() < share]
    if kind == 0:
        for place, source in zip(chosen, rng.sample(chosen, len(chosen)), strict=True):
            units[place], units[source] = units[source], units[place]
    for place in chosen if kind else ():
        units[place] = rng.choice(boilerplate if kind == 1 else units)
    return joint.join(units)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_on_real_text_it_is_calibrated_and_knows_better_than_rules(language: str, tmp_path: Path) -> None:
    every, rng = pieces(language), random.Random(7)
    if not every:
        pytest.skip("no Chinese text here")
    rng.shuffle(every)
    pairs = [(text, 4) if rng.random() < 0.5 else (spoilt(text, language, rng), 0) for text in every]
    cut = 2 * len(pairs) // 3
    for name, grade in (("good", 4), ("poor", 0)):
        lines = [json.dumps({"text": text}) for text, label in pairs[:cut] if label == grade]
        write(tmp_path / f"{name}.jsonl", "\n".join(lines).encode())
    training = {name: [{"path": str(tmp_path / f"{name}.jsonl"), "language": language}] for name in ("good", "poor")}
    [listed] = list_classifiers(data_spec("unused.txt", stages=[{"stage": "grade", "training": training}]))
    classifier = train(listed)
    model = classifier.model(language)
    assert model is not None, classifier.figures
    assert model.heads == ("0-4",)
    [figures] = classifier.figures.languages
    assert figures.heads[0].calibration_error <= 0.05

    unseen = pairs[cut:]
    good = np.array([label == 4 for _, label in unseen])
    said = model.probabilities([GradeLabels().features(text, language) for text, _ in unseen])[:, 0]
    assert calibration_error(said, good) <= 0.05 + 1 / np.sqrt(len(unseen))  # that many draws err by about so much
    by_rules = np.array([level(text, language) for text, _ in unseen])
    assert ((said > 0.5) == good).mean() > max(((by_rules >= border) == good).mean() for border in range(5))


# In a preparation.


def bank(seed: int, count: int = 260) -> list[tuple[str, int]]:
    """Texts of three kinds with their grades: prose from one stock of words, notices from another, and in between."""
    rng = random.Random(seed)
    stocks = WORDS[:6], ("login", "cart", "sale", "click", "cookies", "free")
    made = []
    for number in range(count):
        grade = rng.choice((0, 2, 4))
        words = [rng.choice(stocks[rng.random() > grade / 4]) for _ in range(40)]
        made.append((f"Number {seed} {number}: {' '.join(words)}.", grade))
    return made


def labelled(seed: int, language: str = "en") -> bytes:
    lines = [{"text": text, "grade": grade, "language": language} for text, grade in bank(seed)]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    write(tmp_path / "examples.jsonl", labelled(1))
    for part in range(3):
        write(tmp_path / f"in-{part}.jsonl", b"".join(json.dumps({"text": t}).encode() + b"\n" for t, _ in bank(part + 10, 60)))
    training = {"labelled": [{"path": str(tmp_path / "examples.jsonl")}]}
    return data_spec(
        str(tmp_path / "in-*.jsonl"), stages=["normalise", {"stage": "grade", "keep": [2, 3, 4], "training": training}]
    )


def prepared_in(root: Path, spec: DataSpec, executor: Executor | None = None) -> Prepared:
    return prepare(spec, TokenizerSpec(vocab_size=300), root, executor or SerialExecutor(), lambda progress: None)


def with_stage(spec: DataSpec, **settings: Any) -> DataSpec:
    stage = {**spec.stages[1].model_dump(), **settings}
    return DataSpec.model_validate({**spec.model_dump(), "stages": given_stages(["normalise", stage])})


def test_a_preparation_trains_grades_keeps_and_reports(spec: DataSpec, tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path / "a", spec)
    report = Report.read(prepared.path)
    step = report.steps[2]
    levels = step.grades["en"]
    truth = Counter(grade for part in range(3) for _, grade in bank(part + 10, 60))
    assert sum(levels) == 180
    assert abs(levels[0] + levels[1] - truth[0]) < 20
    assert step.dropped == levels[0] + levels[1]
    assert set(step.drops) <= {"grade_0", "grade_1"}
    [figures] = report.classifiers
    assert (figures.stage, figures.number) == ("grade", 2)
    assert [head.name for head in figures.languages[0].heads] == ["0-2", "2-4"]
    assert all(head.calibration_error <= 0.05 for head in figures.languages[0].heads)
    made = tmp_path / "a" / ".classifiers" / figures.file
    assert prepared.manifest.classifiers == {"stages/1": checksum(made)} == {"stages/1": figures.checksum}


def test_the_grade_is_a_column_of_the_documents_that_are_kept(spec: DataSpec, tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path / "a", spec.model_copy(update={"documents": True}))
    levels = Report.read(prepared.path).steps[2].grades["en"]
    column = [
        grade
        for file in prepared.manifest.documents_files
        for grade in pq.read_table(prepared.path / file.file)["grade"].to_pylist()
    ]
    assert Counter(column) == {level: count for level, count in enumerate(levels) if level >= 2 and count}


def test_five_levels_are_expected_and_rounded(tmp_path: Path) -> None:
    def graded_texts(seed: int) -> list[tuple[str, int]]:
        rng = random.Random(seed)
        made = []
        for _ in range(1500):
            grade = rng.randrange(5)
            words = [rng.choice((WORDS[:7], WORDS[7:])[rng.random() > grade / 4]) for _ in range(60)]
            made.append((" ".join(words), grade))
        return made

    lines = [json.dumps({"text": text, "grade": grade}) for text, grade in graded_texts(1)]
    training = {"labelled": [{"path": write(tmp_path / "a.jsonl", "\n".join(lines).encode())}]}
    [listed] = list_classifiers(data_spec("unused.txt", stages=[{"stage": "grade", "training": training}]))
    path = write(tmp_path / "a.safetensors", train(listed).dump())
    stage = Grade(GradeSpec.model_validate({"trained": {"path": path}}))
    assert Classifier.load(Path(path), "").models["en"].heads == ("0-1", "1-2", "2-3", "3-4")
    unseen = graded_texts(2)
    given = [outcome.grade for text, _ in unseen if isinstance(outcome := stage(Document(text, "", "en", "")), Document)]
    errors = [abs((found or 0) - grade) for found, (_, grade) in zip(given, unseen, strict=True)]
    assert sum(errors) / len(errors) < 0.25
    assert max(errors) <= 2


def test_a_language_without_a_model_is_graded_by_rules(spec: DataSpec, tmp_path: Path) -> None:
    prepared_in(tmp_path / "a", spec)
    [made] = (tmp_path / "a" / ".classifiers").iterdir()
    trained = {"path": str(made)}
    for text in ("\n".join(PROSE["zh"]), MENU["zh"]):
        outcome = graded(text, "zh", trained=trained)
        assert isinstance(outcome, Document)
        assert outcome.grade == level(text, "zh")


def test_without_examples_rules_decide_and_the_report_says_that_there_is_no_model(spec: DataSpec, tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path / "a", with_stage(spec, training=None, keep=None))
    [figures] = Report.read(prepared.path).classifiers
    assert (figures.file, figures.languages) == ("", ())
    assert sum(Report.read(prepared.path).steps[2].grades["en"]) == 180
    assert prepared.manifest.classifiers == {}


def test_who_does_the_work_and_in_what_order_does_not_matter(spec: DataSpec, tmp_path: Path) -> None:
    one, other = prepared_in(tmp_path / "a", spec), prepared_in(tmp_path / "b", spec, Backwards())
    assert files(one.path) == files(other.path)


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_trains_the_same_bytes(spec: DataSpec, tmp_path: Path) -> None:
    from data.ray_executor import RayDataExecutor

    serial = prepared_in(tmp_path / "serial", spec)
    spread = prepared_in(tmp_path / "ray", spec, RayDataExecutor())
    assert files(serial.path) == files(spread.path)
    assert files(tmp_path / "serial" / ".classifiers") == files(tmp_path / "ray" / ".classifiers")


def test_a_classifier_is_trained_once_and_found_again(spec: DataSpec, tmp_path: Path) -> None:
    prepared_in(tmp_path / "a", spec)
    [made] = (tmp_path / "a" / ".classifiers").iterdir()
    before = made.stat().st_mtime_ns
    again = prepared_in(tmp_path / "a", with_stage(spec, keep=[4]))
    assert not again.reused
    assert [made] == list(made.parent.iterdir())
    assert made.stat().st_mtime_ns == before


def test_other_examples_are_another_data_set(spec: DataSpec, tmp_path: Path) -> None:
    first = prepared_in(tmp_path / "a", spec)
    assert prepared_in(tmp_path / "a", spec).reused
    write(tmp_path / "examples.jsonl", labelled(2))
    assert prepared_in(tmp_path / "a", spec).path != first.path
    assert len(list((tmp_path / "a" / ".classifiers").iterdir())) == 2


def test_a_classifier_that_was_trained_before_grades_alike(spec: DataSpec, tmp_path: Path) -> None:
    first = prepared_in(tmp_path / "a", spec)
    [made] = (tmp_path / "a" / ".classifiers").iterdir()
    second = prepared_in(tmp_path / "a", with_stage(spec, training=None, trained={"path": str(made)}))
    assert second.path != first.path
    assert [step.grades for step in Report.read(second.path).steps] == [step.grades for step in Report.read(first.path).steps]
    assert second.manifest.classifiers == first.manifest.classifiers


def test_a_trained_classifier_that_is_another_one_is_refused(spec: DataSpec, tmp_path: Path) -> None:
    other = write(tmp_path / "other.safetensors", b"no such thing")
    for trained in ({"path": other}, {"path": other, "checksum": "0" * 32}, {"path": str(tmp_path / "gone")}):
        with pytest.raises(SourceError, match=r"other\.safetensors|gone") as raised:
            prepared_in(tmp_path / "a", with_stage(spec, training=None, trained=trained))
        assert raised.value.pointer == "/data_pipeline/stages/1/trained/path"


def test_a_language_with_few_examples_is_graded_by_rules_and_the_report_says_so(spec: DataSpec, tmp_path: Path) -> None:
    few = [{"text": text, "grade": grade, "language": "de"} for text, grade in bank(3, 20)]
    write(tmp_path / "examples.jsonl", labelled(1) + b"".join(json.dumps(line).encode() + b"\n" for line in few))
    german, english = Report.read(prepared_in(tmp_path / "a", spec).path).classifiers[0].languages
    assert (german.language, german.examples, german.heads) == ("de", 20, ())
    assert "fewer than 50 examples" in german.off
    assert english.off == ""


@pytest.mark.parametrize(("rare", "step"), [(0, "0-2"), (4, "2-4")])
def test_a_scale_with_too_few_examples_of_an_end_is_not_cut_short(rare: int, step: str, spec: DataSpec, tmp_path: Path) -> None:
    lines = labelled(1).splitlines(keepends=True)
    of_end = [line for line in lines if b'"grade": %d' % rare in line]
    write(tmp_path / "examples.jsonl", b"".join(line for line in lines if line not in of_end[10:]))
    prepared = prepared_in(tmp_path / "a", with_stage(spec, keep=None))
    [english] = Report.read(prepared.path).classifiers[0].languages
    assert english.off == f"{step}: fewer than 50 examples on one side"
    by_rules = prepared_in(tmp_path / "b", with_stage(spec, training=None, keep=None))
    assert Report.read(prepared.path).steps[2].grades == Report.read(by_rules.path).steps[2].grades


FAULTS: dict[str, tuple[bytes | None, str, str]] = {
    "missing": (None, "does not exist", "/labelled/0/path"),
    "empty": (b"", "is empty", "/labelled/0/path"),
    "broken": (labelled(1) + b"{", r"examples\.jsonl:261: not JSON", "/labelled/0/path"),
    "one class only": (
        b"".join(line for line in labelled(1).splitlines(keepends=True) if b'"grade": 4' in line),
        "no class",
        "",
    ),
    "too few": (b"".join(labelled(1).splitlines(keepends=True)[:30]), "50 on each of its sides", ""),
}


@pytest.mark.parametrize("executor", [SerialExecutor(), Backwards()], ids=["serial", "backwards"])
@pytest.mark.parametrize(("content", "message", "pointer"), FAULTS.values(), ids=FAULTS)
def test_training_data_that_is_no_use_is_the_users_error(
    content: bytes | None, message: str, pointer: str, executor: Executor, spec: DataSpec, tmp_path: Path
) -> None:
    path = tmp_path / "examples.jsonl"
    if content is None:
        path.unlink()
    else:
        write(path, content)
    with pytest.raises(MantaError, match=message) as raised:
        prepared_in(tmp_path / "a", spec, executor)
    assert raised.value.pointer == f"/data_pipeline/stages/1/training{pointer}"
    assert not list((tmp_path / "a").glob("*.partial"))


def test_corpora_may_be_of_any_kind_that_sources_are(tmp_path: Path) -> None:
    good = write(tmp_path / "good.txt", "\n\n".join(text for text, grade in bank(1, 4000) if grade == 4).encode())
    poor = write(tmp_path / "poor.jsonl.gz", b"".join(json.dumps({"body": t}).encode() + b"\n" for t, g in bank(2) if not g))
    training = {"good": [{"path": good}], "poor": [{"path": poor, "text_field": "body"}], "min_examples": 10}
    [listed] = list_classifiers(data_spec("unused.txt", stages=[{"stage": "grade", "training": training}]))
    assert train(listed).figures.languages[0].heads[0].ranking > 0.9
    broken = write(tmp_path / "poor.jsonl.gz", b'{"text": "a"}\n')
    [listed] = list_classifiers(data_spec("unused.txt", stages=[{"stage": "grade", "training": training}]))
    with pytest.raises(DocumentError, match="no field 'body'") as raised:
        train(listed)
    assert broken in raised.value.detail
    assert raised.value.pointer == "/data_pipeline/stages/0/training/poor/0/text_field"


def test_a_file_that_changes_while_it_is_learned_from_is_named(spec: DataSpec, tmp_path: Path) -> None:
    [listed] = list_classifiers(spec)
    write(tmp_path / "examples.jsonl", labelled(5))
    with pytest.raises(SourceError, match="changed while it was read") as raised:
        train(listed)
    assert raised.value.pointer == "/data_pipeline/stages/1/training/labelled/0/path"


def test_the_library_that_trains_is_missed_before_anything_is_read(
    spec: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name="sklearn")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(LibraryMissing, match="sklearn") as raised:
        prepared_in(tmp_path / "a", spec)
    assert raised.value.pointer == "/data_pipeline/stages/1"
    assert not (tmp_path / "a").exists()


ACCENTS = {4: "cafe\u0301", 0: "cafe\u0300"}
"""Letters and marks apart: two words of one letter more each, until Unicode NFC makes one word of each."""


@pytest.mark.parametrize(
    ("before", "after", "told_apart"), [(["normalise"], [], True), ([], ["normalise"], False), ([], [], False)]
)
def test_a_classifier_learns_from_texts_as_the_stages_before_it_leave_them(
    before: list[str], after: list[str], told_apart: bool, tmp_path: Path
) -> None:
    rng = random.Random(1)
    lines = []
    for number in range(400):
        grade = rng.choice((0, 4))
        words = [rng.choice((*WORDS, ACCENTS[grade])) for _ in range(40)]
        lines.append({"text": f"{number} {' '.join(words)}", "grade": grade})
    path = write(tmp_path / "a.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    grade_stage = {"stage": "grade", "training": {"labelled": [{"path": path}]}}
    [source] = list_classifiers(data_spec("unused.txt", stages=[*before, grade_stage, *after]))
    [figures] = train(source).figures.languages
    assert (figures.heads[0].ranking > 0.99) is told_apart
    assert not told_apart or figures.off == ""


def test_what_a_stage_before_would_drop_is_learned_from_all_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", labelled(1))
    grade_stage = {"stage": "grade", "training": {"labelled": [{"path": path}]}}
    strict = {"stage": "c4", "min_sentences": 99}
    [plain], [behind] = (list_classifiers(data_spec("unused.txt", stages=[*s, grade_stage])) for s in ([], [strict]))
    assert train(behind).dump() == train(plain).dump()
    assert plain.identity != behind.identity

"""Decontamination in a preparation: counted and shown, the same bytes however it is carried out, bad test sets named."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from data.decontamination.spec import BenchmarkSpec, DecontaminateSpec
from data.errors import DocumentError, MantaError, NotEnoughData, SourceError
from data.executors import Executor, SerialExecutor
from data.prepare import Prepared, prepare
from data.report import Report
from data.spec import DataSpec, SourceSpec, TokenizerSpec
from tests.data.conftest import Preparation, data_spec, json_lines, texts, write
from tests.data.test_prepare import Backwards, StopAfter, files


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    """Two cells in several files; a test set of which three items are in the text of the first cell, one in the second."""
    exam = [f"Question {i}: " + text for i, text in enumerate(texts(20, seed=70, words=60))]
    for part in range(4):
        planted = [f"{texts(1, seed=80 + part)[0]}\n{exam[part].upper()}!\n{texts(1, seed=90)[0]}"] if part < 3 else []
        write(tmp_path / "en" / f"{part}.jsonl", json_lines([*texts(12, seed=part), *planted]))
        write(tmp_path / "code" / f"{part}.jsonl", json_lines(texts(8, seed=part + 9)))
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
    assert (step.name, step.came.documents) == ("decontaminate", 84)
    assert prepared.manifest.drops["test_set_overlap"] == step.drops["test_set_overlap"] >= 1
    assert (
        report.kept.documents
        == 84 - step.dropped
        == prepared.manifest.documents("train") + prepared.manifest.documents("held_out")
    )
    for example in step.examples["test_set_overlap"]:
        assert example.id.endswith(("0.jsonl:13", "1.jsonl:13", "2.jsonl:13", "9.jsonl:1"))
        assert example.detail == "1.00 of exam"
    exam, held_out = report.decontamination
    assert (exam.name, exam.items, held_out.name) == ("exam", 20, "held_out")
    # An item may lie in a held-out document, which stays.
    assert exam.dropped == step.drops["test_set_overlap"] <= exam.found <= 4
    assert held_out.items == prepared.manifest.documents("held_out")
    without = Report.read(preparation(spec.model_copy(update={"decontaminate": None})).path)
    assert without.kept.documents == 84
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


@pytest.mark.parametrize("count", [1, 2, 3])
def test_nothing_to_compare_with_is_no_overlap(count: int, tmp_path: Path, preparation: Preparation) -> None:
    path = write(tmp_path / "a.jsonl", json_lines([f"{i} short" for i in range(count)]))
    asked = data_spec(path, stages=["normalise"], decontaminate=True)
    if count == 1:
        with pytest.raises(NotEnoughData, match="only one document is left"):
            preparation(asked)
    else:
        [held_out] = Report.read(preparation(asked, vocab_size=300).path).decontamination
        assert (held_out.items, held_out.too_short, held_out.ngrams, held_out.dropped) == (1, 1, 0, 0)


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

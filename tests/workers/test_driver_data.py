"""The data phase of an attempt: prepared once in the life of a job. No cluster is running here."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data.errors import MantaError, NotEnoughData
from data.executors import SerialExecutor
from data.locks import locked
from workers.attempt import Desired, Order, Phase
from workers.driver import _prepare
from workers.preparation import PREPARED, Stopped
from workers.reporter import NullReporter
from workers.spec import TrainSpec


@dataclass
class Listener(NullReporter):
    phases: list[tuple[Phase, bool]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def phase(self, phase: Phase, done: int, total: int | None, unit: str, reused: bool = False) -> None:
        self.phases.append((phase, reused))

    def event(self, type: str, message: str, **data: Any) -> None:
        self.events.append(type)
        self.desired = Desired.PAUSED

    def reused(self) -> bool:
        return self.phases == [(Phase.DOCUMENTS, True), (Phase.TOKENIZER, True), (Phase.SHARDS, True)]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.ray_executor.RayDataExecutor", lambda pulse: SerialExecutor())


@pytest.fixture
def spec(tmp_path: Path) -> TrainSpec:
    text = tmp_path / "text.jsonl"
    words = "the quick brown fox jumps over the lazy dog. " * 8
    text.write_text("".join(json.dumps({"text": f"Document {i}: {words}"}) + "\n" for i in range(100)))
    return TrainSpec.model_validate(
        {
            "data_pipeline": {"sources": [{"path": str(text)}], "sequence_length": 32, "deduplicate": False},
            "tokenizer": {"vocab_size": 300},
            "training": {"steps": 2, "global_batch_size": 4, "micro_batch_size": 2},
        }
    )


def order(tmp_path: Path, spec: TrainSpec, attempt: int) -> Order:
    (tmp_path / "job").mkdir(parents=True, exist_ok=True)
    return Order(
        job_id="j1",
        job_name="test",
        kind="train",
        attempt=attempt,
        token="t",
        service_url="http://service",
        spec=spec.model_dump(mode="json"),
        job_dir=tmp_path / "job",
        prepared_dir=tmp_path / "prepared",
    )


def prepared_path(order: Order, spec: TrainSpec | None, reporter: Listener) -> Path:
    return _prepare(order, spec, reporter)[0]


def test_a_later_attempt_goes_on_though_the_sources_are_gone(tmp_path: Path, spec: TrainSpec) -> None:
    first = prepared_path(order(tmp_path, spec, 1), spec, Listener())
    (tmp_path / "text.jsonl").unlink()
    later = Listener()
    assert prepared_path(order(tmp_path, spec, 2), spec, later) == first
    assert later.reused()


@pytest.mark.parametrize("loss", ["data set", "manifest", "another data set"])
def test_what_is_no_longer_there_is_prepared_again(tmp_path: Path, spec: TrainSpec, loss: str) -> None:
    first = prepared_path(order(tmp_path, spec, 1), spec, Listener())
    if loss == "another data set":
        (tmp_path / "job" / PREPARED).write_text(json.dumps({"path": str(first), "hash": "another"}))
    elif loss == "manifest":
        (first / "manifest.json").unlink()
        first.rename(first.with_name("torn"))
        (tmp_path / "job" / PREPARED).write_text(json.dumps({"path": str(first.with_name("torn")), "hash": first.name}))
    else:
        shutil.rmtree(first)
    assert prepared_path(order(tmp_path, spec, 2), spec, Listener()) == first
    assert json.loads((tmp_path / "job" / PREPARED).read_text()) == {"path": str(first), "hash": first.name}


def test_a_preparation_that_was_paused_leaves_no_record(tmp_path: Path, spec: TrainSpec) -> None:
    paused = Listener()
    paused.stale = True
    with pytest.raises(Stopped):
        prepared_path(order(tmp_path, spec, 1), spec, paused)
    assert not (tmp_path / "job" / PREPARED).exists()


def test_a_preparation_that_waits_for_another_says_so_and_can_be_paused(tmp_path: Path, spec: TrainSpec) -> None:
    name = prepared_path(order(tmp_path / "elsewhere", spec, 1), spec, Listener()).name
    waiting = Listener()
    with locked(tmp_path / "prepared" / f".{name}.lock", lambda: None), pytest.raises(Stopped) as stopped:
        prepared_path(order(tmp_path, spec, 1), spec, waiting)
    assert waiting.events == ["waiting_for_data"]
    assert stopped.value.outcome == "paused"
    assert prepared_path(order(tmp_path, spec, 2), spec, Listener()).name == name


def _data_order(tmp_path: Path, spec: TrainSpec, attempt: int = 1) -> Order:
    only = {"data_pipeline": spec.data_pipeline.model_dump(mode="json"), "tokenizer": spec.tokenizer.model_dump(mode="json")}
    return order(tmp_path, spec, attempt).model_copy(update={"kind": "data", "spec": only})


def test_a_job_of_data_alone_prepares_what_a_training_job_of_the_same_data_then_uses(tmp_path: Path, spec: TrainSpec) -> None:
    first = prepared_path(_data_order(tmp_path, spec), None, Listener())
    later = Listener()
    training = order(tmp_path, spec, 1).model_copy(update={"job_dir": tmp_path / "other"})
    training.job_dir.mkdir()
    assert prepared_path(training, spec, later) == first
    assert [phase for phase, reused in later.phases if reused] == [Phase.DOCUMENTS, Phase.TOKENIZER, Phase.SHARDS]


@pytest.mark.parametrize(("desired", "outcome"), [(Desired.PAUSED, "paused"), (Desired.CANCELLED, "cancelled")])
def test_a_job_of_data_alone_is_stopped_between_two_tasks_and_goes_on(
    desired: Desired, outcome: str, tmp_path: Path, spec: TrainSpec
) -> None:
    class Stops(Listener):
        def phase(self, phase: Phase, done: int, total: int | None, unit: str, reused: bool = False) -> None:
            super().phase(phase, done, total, unit, reused)
            if phase is Phase.TOKENIZER:
                self.desired = desired

    with pytest.raises(Stopped) as stopped:
        prepared_path(_data_order(tmp_path, spec), None, Stops())
    assert stopped.value.outcome == outcome
    [part] = (tmp_path / "prepared").glob(".cleaned/documents-*.arrow")
    before = part.stat().st_mtime_ns
    with pytest.raises(Stopped):
        prepared_path(_data_order(tmp_path, spec, 2), None, Stops())
    assert part.stat().st_mtime_ns == before
    assert (prepared_path(_data_order(tmp_path, spec, 3), None, Listener()) / "report.json").is_file()


def test_what_is_wrong_with_a_job_of_data_alone_points_into_its_spec(tmp_path: Path, spec: TrainSpec) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "one document alone is too few, however long it may be"}\n')
    with pytest.raises(NotEnoughData, match="only one document is left") as failure:
        prepared_path(_data_order(tmp_path, spec), None, Listener())
    assert failure.value.pointer == "/data_pipeline/sources/0/path"


def test_too_little_text_for_one_batch_is_known_before_any_worker_starts(tmp_path: Path, spec: TrainSpec) -> None:
    training = spec.training.model_copy(update={"global_batch_size": 100_000})
    with pytest.raises(NotEnoughData, match="fewer than one global batch") as failure:
        prepared_path(order(tmp_path, spec, 1), spec.model_copy(update={"training": training}), Listener())
    assert isinstance(failure.value, MantaError)
    assert failure.value.pointer == "/training/global_batch_size"


def test_weights_that_cannot_be_begun_with_are_refused_before_the_data_costs_anything(tmp_path: Path, spec: TrainSpec) -> None:
    listener = Listener()
    with pytest.raises(MantaError, match="is no directory; init_from names one") as failure:
        prepared_path(order(tmp_path, spec, 1), spec.model_copy(update={"init_from": str(tmp_path / "nowhere")}), listener)
    assert failure.value.pointer == "/init_from"
    assert listener.phases == []

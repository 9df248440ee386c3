"""The data phase of an attempt: prepared once in the life of a job. No cluster is running here."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from data.errors import MantaError, NotEnoughData
from data.executors import SerialExecutor
from workers.attempt import Order, Phase
from workers.driver import PREPARED, Stopped, _prepare
from workers.reporter import NullReporter
from workers.spec import TrainSpec


@dataclass
class Listener(NullReporter):
    phases: list[tuple[Phase, bool]] = field(default_factory=list)

    def phase(self, phase: Phase, done: int, total: int | None, unit: str, reused: bool = False) -> None:
        self.phases.append((phase, reused))

    def reused(self) -> bool:
        return self.phases == [(Phase.DOCUMENTS, True), (Phase.TOKENIZER, True), (Phase.SHARDS, True)]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.ray_executor.RayDataExecutor", SerialExecutor)


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
    (tmp_path / "job").mkdir(exist_ok=True)
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


def test_a_later_attempt_goes_on_though_the_sources_are_gone(tmp_path: Path, spec: TrainSpec) -> None:
    first = _prepare(order(tmp_path, spec, 1), spec, Listener())
    (tmp_path / "text.jsonl").unlink()
    later = Listener()
    assert _prepare(order(tmp_path, spec, 2), spec, later) == first
    assert later.reused()


@pytest.mark.parametrize("loss", ["data set", "manifest", "another data set"])
def test_what_is_no_longer_there_is_prepared_again(tmp_path: Path, spec: TrainSpec, loss: str) -> None:
    first = _prepare(order(tmp_path, spec, 1), spec, Listener())
    if loss == "another data set":
        (tmp_path / "job" / PREPARED).write_text(json.dumps({"path": str(first), "hash": "another"}))
    elif loss == "manifest":
        (first / "manifest.json").unlink()
        first.rename(first.with_name("torn"))
        (tmp_path / "job" / PREPARED).write_text(json.dumps({"path": str(first.with_name("torn")), "hash": first.name}))
    else:
        shutil.rmtree(first)
    assert _prepare(order(tmp_path, spec, 2), spec, Listener()) == first
    assert json.loads((tmp_path / "job" / PREPARED).read_text()) == {"path": str(first), "hash": first.name}


def test_a_preparation_that_was_paused_leaves_no_record(tmp_path: Path, spec: TrainSpec) -> None:
    paused = Listener()
    paused.stale = True
    with pytest.raises(Stopped):
        _prepare(order(tmp_path, spec, 1), spec, paused)
    assert not (tmp_path / "job" / PREPARED).exists()


def test_too_little_text_for_one_batch_is_known_before_any_worker_starts(tmp_path: Path, spec: TrainSpec) -> None:
    training = spec.training.model_copy(update={"global_batch_size": 100_000})
    with pytest.raises(NotEnoughData, match="fewer than one global batch") as failure:
        _prepare(order(tmp_path, spec, 1), spec.model_copy(update={"training": training}), Listener())
    assert isinstance(failure.value, MantaError)
    assert failure.value.pointer == "/training/global_batch_size"


def test_weights_that_cannot_be_begun_with_are_refused_before_the_data_costs_anything(tmp_path: Path, spec: TrainSpec) -> None:
    listener = Listener()
    with pytest.raises(MantaError, match="is no directory; init_from names one") as failure:
        _prepare(order(tmp_path, spec, 1), spec.model_copy(update={"init_from": str(tmp_path / "nowhere")}), listener)
    assert failure.value.pointer == "/init_from"
    assert listener.phases == []

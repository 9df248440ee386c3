"""Rows that change over a run, or are more than one window of attention, through data room, loop and checkpoints."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data.dataset import Batch
from data.executors import SerialExecutor
from data.prepare import prepare
from tests.workers.conftest import WORDS
from tests.workers.tiny import InjectedFault, fail_at, run_training, tiny_spec
from workers.engine import Engine, StepResult
from workers.mesh import Membership
from workers.spec import TrainSpec

CURRICULUM = [
    {"sequence_length": 8, "fraction": 0.25},
    {"sequence_length": 16, "fraction": 0.25},
    {"sequence_length": 32, "fraction": 0.5},
]
SEGMENTS = {"segment_length": 16, "memory_length": 16}
HIERARCHICAL = {"attention_pattern": "hierarchical", "hierarchical_block": 4, "hierarchical_slots": 2}
COURSES: dict[str, dict[str, Any]] = {
    "curriculum": {"data_pipeline": {"sequence_length": 32, "curriculum": CURRICULUM}},
    "batch warm-up": {"training": {"batch_warmup": {"start": 1, "fraction": 0.5}}},
    "segments": {"data_pipeline": {"sequence_length": 16, "chain_segments": 2}, "model": SEGMENTS},
    "hierarchical": {"model": HIERARCHICAL},
    "hierarchical, in a curriculum": {
        "data_pipeline": {"sequence_length": 32, "curriculum": CURRICULUM},
        "model": HIERARCHICAL,
        "training": {"batch_warmup": {"start": 2, "fraction": 0.3}},
    },
    "segments, in a curriculum": {
        "data_pipeline": {
            "sequence_length": 32,
            "chain_segments": 2,
            "curriculum": [{"sequence_length": 16, "fraction": 0.5}, {"sequence_length": 32, "fraction": 0.5}],
        },
        "model": SEGMENTS,
    },
}
every_course = pytest.mark.parametrize("course", COURSES)


def spec_of(course: str, source: Path) -> TrainSpec:
    plain, changes = tiny_spec(steps=8, learning_rate=1e-2).model_dump(mode="json"), COURSES[course]
    data = {"sources": [{"path": str(source / "*.txt")}], "held_out_fraction": 0.1, "sequence_length": 32}
    merged = {
        **plain,
        "data_pipeline": {**data, **changes.get("data_pipeline", {})},
        "model": {**plain["model"], **changes.get("model", {})},
        "training": {**plain["training"], **changes.get("training", {})},
        "tokenizer": {"vocab_size": 300},
    }
    return TrainSpec.model_validate(merged)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, draw = tmp_path_factory.mktemp("courses"), random.Random(0)
    for i in range(200):
        (root / f"{i:03}.txt").write_text(" ".join(draw.choices(WORDS, k=draw.randint(20, 60))) + f" number {i}.")
    return root


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The rows of each course."""
    root, paths = tmp_path_factory.mktemp("prepared"), {}
    for course in COURSES:
        spec = spec_of(course, source)
        paths[course] = prepare(spec.data_pipeline, spec.tokenizer, root, SerialExecutor(), lambda progress: None).path
    return paths


@every_course
def test_a_course_trains_and_goes_on_exactly(
    course: str, source: Path, prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, step = spec_of(course, source), Engine.train_step
    seen: list[tuple[int, int, int]] = []
    numbers: list[int] = []

    def watched(self: Engine, micro_batches: Sequence[Batch | None], *, signal: int = 0) -> StepResult:
        batches = [batch for batch in micro_batches if batch is not None]
        seen.append((len(batches), *batches[0].tokens.shape))
        numbers.extend(number for batch in batches for number in batch.samples.tolist())
        return step(self, micro_batches, signal=signal)

    monkeypatch.setattr(Engine, "train_step", watched)
    outcome, whole = run_training(Membership(), spec, prepared[course], tmp_path / "whole")
    assert outcome.kind == "succeeded"
    assert whole.losses[8] < whole.losses[1] - 0.1
    shapes = [spec.curriculum.at(i) for i in range(8)]
    assert seen == [(shape.micro_batches, shape.micro_batch_size, shape.row_length) for shape in shapes]
    assert numbers == list(range(len(numbers))), "every row of the run has a number of its own"
    assert outcome.summary is not None
    assert outcome.summary.tokens == sum(a * b * c for a, b, c in seen)

    with pytest.raises(InjectedFault):
        run_training(Membership(), spec, prepared[course], tmp_path / "broken", hooks=fail_at(0, 6, Membership()))
    again, rest = run_training(Membership(generation=1), spec, prepared[course], tmp_path / "broken")
    assert rest.beats[0] == 5
    assert rest.losses == {step: loss for step, loss in whole.losses.items() if step >= 5}
    assert again.summary is not None
    for name in ("tokens", "eval_loss", "one_token_context_loss", "samples"):
        assert getattr(again.summary, name) == getattr(outcome.summary, name)


def test_the_courses_change_what_they_say(source: Path) -> None:
    def lengths(course: str) -> list[int]:
        curriculum = spec_of(course, source).curriculum
        return [curriculum.at(step).row_length for step in range(8)]

    assert lengths("curriculum") == [8, 8, 16, 16, 32, 32, 32, 32]
    assert lengths("segments, in a curriculum") == [32] * 4 + [64] * 4
    warmed = spec_of("batch warm-up", source).curriculum
    assert [warmed.at(step).micro_batches for step in range(8)] == [1, 1, 2, 3, 4, 4, 4, 4]
    assert spec_of("hierarchical", source).data_pipeline.document_alignment == 4

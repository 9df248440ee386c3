"""A run whose rows grow longer and whose batches grow larger: what the spec says of it, and that restarts change nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.dataset import PackedDataset
from data.executors import SerialExecutor
from data.prepare import prepare
from data.spec import DataSpec, TokenizerSpec
from tests.workers.conftest import GlooPool
from tests.workers.tiny import Recorder, run_training, tiny_spec
from workers.attempt import Desired
from workers.mesh import Membership
from workers.model.count import flops_per_token
from workers.spec import TrainingSpec, TrainSpec

CURRICULUM = [{"sequence_length": 8, "fraction": 0.25}, {"sequence_length": 32, "fraction": 0.75}]
TOLERANCE = 1e-4


def growing_spec(**training: Any) -> TrainSpec:
    """Batches of one, two and three micro-batches, then four; rows of 8 tokens for a quarter of all tokens, then of 32."""
    spec = tiny_spec(steps=8, batch_warmup={"start": 1, "fraction": 0.4}, **training).model_dump()
    return TrainSpec.model_validate({**spec, "data_pipeline": {**spec["data_pipeline"], "curriculum": CURRICULUM}})


@pytest.fixture(scope="module")
def growing_data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents of ``tiny_data`` for ``CURRICULUM``."""
    source = {"path": str(tiny_data.parents[1] / "*.txt")}
    data = DataSpec.model_validate(
        {"sources": [source], "sequence_length": 32, "held_out_fraction": 0.1, "curriculum": CURRICULUM}
    )
    root = tmp_path_factory.mktemp("growing")
    return prepare(data, TokenizerSpec(vocab_size=300), root, SerialExecutor(), lambda progress: None).path


@pytest.mark.parametrize(
    ("start", "words"),
    [(3, "batch_warmup.start 3 is not divisible by micro_batch_size 2"), (10, "start 10 is more than global_batch_size 8")],
)
def test_a_batch_warm_up_that_does_not_fit_is_named(start: int, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TrainingSpec.model_validate(
            {"global_batch_size": 8, "micro_batch_size": 2, "batch_warmup": {"start": start, "fraction": 0.1}}
        )


def test_a_batch_warm_up_takes_more_steps_for_the_same_tokens() -> None:
    recipe = {"tokens": 100 * 8 * 32, "global_batch_size": 8, "micro_batch_size": 2}
    warmed = {**recipe, "batch_warmup": {"start": 2, "fraction": 0.5}}
    assert TrainingSpec.model_validate(recipe).total_steps(sequence_length=32) == 100
    steps = TrainingSpec.model_validate(warmed).total_steps(sequence_length=32)
    assert steps > 120
    sizes = TrainingSpec.model_validate(warmed).batch_sizes(steps)
    assert sizes.before(steps) >= 400 > sizes.before(steps - 1)


def test_the_curriculum_of_a_spec_counts_tokens_not_rows() -> None:
    course = growing_spec().curriculum
    shapes = [course.at(step) for step in range(8)]
    # 26 micro-batches in all; the first three steps take 6, the first four 10: a quarter is reached with the fourth.
    assert [(s.micro_batches, s.micro_batch_size, s.row_length) for s in shapes] == [
        *((1, 4, 8), (2, 4, 8), (3, 4, 8), (4, 4, 8)),
        *((4, 1, 32),) * 4,
    ]


def test_chains_make_rows_longer() -> None:
    spec = growing_spec().model_dump()
    spec["data_pipeline"]["chain_segments"] = 4
    assert TrainSpec.model_validate(spec).curriculum.row_lengths == (32, 128)


def test_a_growing_run_that_is_paused_goes_on_as_if_it_had_not_been(growing_data: Path, tmp_path: Path) -> None:
    spec = growing_spec()
    outcome, whole = run_training(Membership(), spec, growing_data, tmp_path / "whole")
    assert outcome.summary is not None
    assert outcome.summary.tokens == spec.curriculum.tokens_before(8) == 26 * 32
    losses: dict[int, float] = {}
    for wishes in ({1: Desired.PAUSED}, {2: Desired.PAUSED}, {}):
        _, part = run_training(Membership(), spec, growing_data, tmp_path / "paused", wishes=wishes)
        losses |= part.losses
    assert losses == whole.losses


def test_utilisation_counts_the_length_of_each_steps_rows(
    growing_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[dict[str, float]] = []

    def metrics(self: Recorder, step: int, values: Mapping[str, float]) -> None:
        figures.extend([dict(values)] if "loss" in values else [])

    monkeypatch.setattr(Recorder, "metrics", metrics)
    spec, vocabulary = growing_spec(), PackedDataset.open(growing_data).manifest.vocab_size
    outcome, _ = run_training(Membership(), spec, growing_data, tmp_path)
    shapes = [spec.curriculum.at(step) for step in range(8)]
    flops = [shape.rows * shape.row_length * flops_per_token(spec.model, vocabulary, shape.row_length) for shape in shapes]
    seconds = [each["step_seconds"] for each in figures]
    # The peak is said to be 1 TFLOP/s.
    assert [1e12 * each["mfu"] * each["step_seconds"] for each in figures] == pytest.approx(flops)
    assert outcome.summary is not None
    assert outcome.summary.mfu is not None
    assert 1e12 * outcome.summary.mfu * sum(seconds) == pytest.approx(sum(flops))


def test_two_ranks_share_steps_of_every_size_and_length(gloo_pool: GlooPool, growing_data: Path, tmp_path: Path) -> None:
    spec = growing_spec()
    _, alone = run_training(Membership(), spec, growing_data, tmp_path / "alone")
    ranks = gloo_pool.run(run_training, spec, growing_data, tmp_path / "two")
    assert list(ranks[0][1].losses.values()) == pytest.approx(list(alone.losses.values()), rel=TOLERANCE)


def test_length_buckets_are_trained_on_by_any_number_of_ranks_and_over_a_pause(
    gloo_pool: GlooPool, tiny_data: Path, tmp_path: Path
) -> None:
    source = {"path": str(tiny_data.parents[1] / "*.txt")}
    data = {"sources": [source], "sequence_length": 32, "packing": "one_document", "length_buckets": [8, 16]}
    small = TokenizerSpec(vocab_size=300)
    prepared = prepare(DataSpec.model_validate(data), small, tmp_path / "data", SerialExecutor(), lambda progress: None).path
    assert min(segment.rows for segment in PackedDataset.open(prepared).manifest.segments) > 0
    spec = TrainSpec.model_validate({**tiny_spec(steps=8).model_dump(), "data_pipeline": data})
    _, alone = run_training(Membership(), spec, prepared, tmp_path / "alone")
    ranks = gloo_pool.run(run_training, spec, prepared, tmp_path / "two")
    assert list(ranks[0][1].losses.values()) == pytest.approx(list(alone.losses.values()), rel=TOLERANCE)
    losses: dict[int, float] = {}
    for wishes in ({3: Desired.PAUSED}, {}):
        _, part = run_training(Membership(), spec, prepared, tmp_path / "paused", wishes=wishes)
        losses |= part.losses
    assert losses == alone.losses

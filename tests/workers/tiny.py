"""A job of a second or two, and what its ranks do. The gloo pool's processes import this module by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from data.dataset import Batch, PackedDataset
from workers.attempt import Desired, Phase, Summary
from workers.checkpoint import CheckpointStore
from workers.engine import Engine
from workers.loop import Hooks, Outcome, train
from workers.mesh import Membership, deal
from workers.reporter import NullReporter
from workers.spec import TrainSpec

VOCAB = 300
LENGTH = 32


def tiny_spec(**training: Any) -> TrainSpec:
    """Six steps of four rows in micro-batches of one."""
    recipe = {"steps": 6, "global_batch_size": 4, "micro_batch_size": 1, "warmup_steps": 2, "eval_rows": 6, **training}
    model = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "moe_intermediate_size": 16}
    return TrainSpec.model_validate(
        {
            "data_pipeline": {"sequence_length": LENGTH},
            "model": model,
            "training": recipe,
            # Written in the background, a checkpoint might not be whole yet when a test's fault comes two steps later.
            "checkpoint": {"interval": 2, "asynchronous": False},
            "monitoring": {"peak_tflops": 1.0},
        }
    )


def rows(step: int, count: int) -> list[Batch]:
    """``count`` micro-batches of one row, numbered through the run: two documents and padding of differing length, so that
    targets differ in number."""
    batches = []
    for i in range(count):
        draw = np.random.default_rng([step, i])
        used = LENGTH - 5 * i
        cut = used // 3
        documents = np.full((1, LENGTH), -1, dtype=np.int32)
        documents[0, :cut], documents[0, cut:used] = 0, 1
        positions = np.concatenate([np.arange(cut), np.arange(LENGTH - cut)])[None].astype(np.int32)
        # A skewed distribution, so that there is something to learn.
        tokens = np.minimum(draw.geometric(0.05, (1, LENGTH)), VOCAB - 1).astype(np.uint32)
        batches.append(Batch(tokens, documents, positions, np.array([step * count + i])))
    return batches


def steps(engine: Engine, first: int, last: int, micro_batches: int = 4) -> list[tuple[float, float]]:
    """Optimizer steps ``first .. last`` of ``rows``, dealt over the engine's ranks; loss and gradient norm of each."""
    member = engine.mesh.membership
    figures = []
    for step in range(first, last):
        result = engine.train_step(deal(rows(step, micro_batches), member.rank, member.world_size))
        figures.append((result.loss, result.grad_norm))
    return figures


def run_steps(
    member: Membership, spec: TrainSpec, first: int, last: int, state: Mapping[str, Any] | None, micro_batches: int = 4
) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    """Build, take some steps, hand the whole state over, tear down."""
    engine = Engine.build(spec, member, VOCAB, state)
    assert engine.step == first
    figures = steps(engine, first, last, micro_batches)
    whole = engine.full_state()
    engine.teardown()
    assert not dist.is_initialized()
    return figures, whole


@dataclass
class Recorder(NullReporter):
    """Remembers; wants what ``wishes`` says after the given step."""

    wishes: Mapping[int, Desired] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    held_out: dict[int, float] = field(default_factory=dict)
    beats: list[int] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)
    parts: dict[int, dict[str, float]] = field(default_factory=dict)
    """Of timed steps, the figures of their parts and of the wait for data."""
    loaded: list[int] = field(default_factory=list)
    """Steps of the checkpoints that it was told of."""
    summary: Summary | None = None
    stale: bool = False

    @property
    def desired(self) -> Desired:
        return self.wishes.get(len(self.beats), Desired.RUNNING)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if "loss" in values:
            self.losses[step] = values["loss"]
            self.seconds[step] = values["step_seconds"]
            assert values["data_wait_seconds"] >= 0
            if parts := {name: value for name, value in values.items() if name.startswith("seconds_")}:
                self.parts[step] = parts
        if "eval_loss" in values:
            self.held_out[step] = values["eval_loss"]

    def heartbeat(self, step: int) -> None:
        self.beats.append(step)

    def event(self, type: str, message: str, **data: Any) -> None:
        if type == "checkpoint_loaded":
            self.loaded.append(data["step"])

    def result(self, summary: Summary) -> None:
        self.summary = summary

    def phase(self, phase: Phase, done: int, total: int | None, unit: str, reused: bool = False) -> None:
        assert phase is Phase.TRAINING


class InjectedFault(Exception):
    """What ``fail_at`` raises."""


def fail_at(rank: int, step: int, member: Membership) -> Hooks:
    def on_step(now: int) -> None:
        if (member.rank, now) == (rank, step):
            raise InjectedFault(f"rank {rank} at step {step}")

    return Hooks(on_step)


def run_training(
    member: Membership,
    spec: TrainSpec,
    data: Path,
    directory: Path,
    wishes: Mapping[int, Desired] | None = None,
    hooks: Hooks | None = None,
) -> tuple[Outcome, Recorder]:
    torch.set_num_threads(1)
    recorder = Recorder(wishes=wishes or {})
    store = CheckpointStore(directory, keep_last=spec.checkpoint.keep_last, asynchronous=spec.checkpoint.asynchronous)
    try:
        return train(spec, member, PackedDataset.open(data), store, recorder, hooks=hooks), recorder
    finally:
        store.close()

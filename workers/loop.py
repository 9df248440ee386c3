"""The train loop. It knows steps, data, checkpoints and reports; nothing of Ray, and of the mesh only its engine."""

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import torch

from data.buckets import order_of_run
from data.dataset import Batch, PackedDataset
from data.errors import MantaError
from data.manifest import require_rows
from data.patterns import PATTERNS
from data.tokenizer import Tokenizer
from workers.attempt import Desired, Phase, Summary
from workers.checkpoint import CheckpointInfo, CheckpointStore
from workers.compat_torch import graphs_compiled
from workers.engine import Engine, StepResult
from workers.evaluate import counting_losses, held_out_loss
from workers.flops import peak_flops
from workers.garbage import after_step, collected_together
from workers.generate import sample_texts
from workers.hf.load import initial_state
from workers.mesh import Membership, deal
from workers.model.count import flops_per_token
from workers.reporter import Reports
from workers.spec import TrainSpec
from workers.timing import Part, StepTimer, Waiting

log = logging.getLogger(__name__)

T = TypeVar("T")
GO, PAUSE, CANCEL = 0, 1, 2
"""What rank 0 tells the others with every step's all-reduce."""


class CheckpointMissing(MantaError):
    """A rank does not see the checkpoint that all are to go on from."""

    code: ClassVar[str] = "checkpoint_missing"
    status: ClassVar[int] = 409


@dataclass(frozen=True)
class Outcome:
    """How a run ended on purpose; faults are exceptions. ``step`` optimizer steps are done."""

    kind: Literal["succeeded", "paused", "cancelled"]
    summary: Summary | None
    step: int


@dataclass(frozen=True)
class Hooks:
    """``on_step(n)`` runs on every rank just before optimizer step ``n`` (from 1): where tests inject faults."""

    on_step: Callable[[int], None] = field(default=lambda step: None)


def train(
    spec: TrainSpec,
    membership: Membership,
    dataset: PackedDataset,
    checkpoints: CheckpointStore,
    reporter: Reports,
    *,
    hooks: Hooks | None = None,
) -> Outcome:
    """Train ``spec`` to its end, or until the user wants otherwise, from the newest whole checkpoint if there is one.

    Called by every rank of ``membership``. The losses are a function of spec, data and world size alone, whatever restarts
    there were. Raises MantaError where the user can mend it (``NotEnoughData``, ``TrainingDiverged``, ``ShardError`` for a
    checkpoint of other data, ``CheckpointWriteError``, ``CheckpointMissing``).
    """
    require_rows(dataset.manifest, spec.training.global_batch_size)
    tokenizer = Tokenizer.load(dataset.tokenizer_path)
    engine = Engine.build(spec, membership, tokenizer.vocab_size)
    try:
        run = _Run(spec, membership, dataset, tokenizer, checkpoints, reporter, hooks or Hooks(), engine)
        return run.to_the_end()
    finally:
        engine.teardown()


class _Run:
    def __init__(
        self,
        spec: TrainSpec,
        membership: Membership,
        dataset: PackedDataset,
        tokenizer: Tokenizer,
        checkpoints: CheckpointStore,
        reporter: Reports,
        hooks: Hooks,
        engine: Engine,
    ) -> None:
        self.spec, self.membership, self.dataset, self.tokenizer = spec, membership, dataset, tokenizer
        self.checkpoints, self.reporter, self.hooks, self.engine = checkpoints, reporter, hooks, engine
        self.order = order_of_run(dataset.manifest, spec.training.seed, spec.curriculum, dataset.path / PATTERNS)
        self.total_steps = spec.total_steps
        self.tokens_before = self.order.curriculum.tokens_before
        self.train_loss = float("nan")
        self.trained_tokens, self.trained_seconds = 0, 0.0
        self.step_parts: dict[str, float] = {}
        self.trained_flops = 0.0
        self.flops_of = {
            length: flops_per_token(spec.model, tokenizer.vocab_size, length) for length in dataset.manifest.row_lengths
        }
        """Of a token, by the length of its row."""
        peak = peak_flops(spec, engine.mesh.device)
        self.peak = None if peak is None else peak * membership.world_size

    def to_the_end(self) -> Outcome:
        """Steps, checkpoints and evaluations in order; every rank leaves at the same step."""
        started = time.monotonic()
        self.resume()
        engine, training = self.engine, self.spec.training
        log.info(
            "rank %d of %d trains from step %d to %d (generation %d, pid %d, %s)",
            *(self.membership.rank, self.membership.world_size, engine.step, self.total_steps),
            *(self.membership.generation, os.getpid(), engine.mesh.device),
        )
        self.reporter.phase(Phase.TRAINING, engine.step, self.total_steps, "steps")
        batches_of_the_run = prefetch(self.micro_batches, range(engine.step, self.total_steps))
        with collected_together(), closing(batches_of_the_run) as batches:
            clock = time.perf_counter()
            waited = Waiting(batches)
            for batch in waited:
                self.hooks.on_step(engine.step + 1)
                result, parts = self.take_step(batch)
                last, clock = clock, time.perf_counter()
                self.report_step(result, clock - last, waited.seconds, parts)
                self.checkpoints.poll()
                after_step(engine.step)
                done = engine.step == self.total_steps
                stop = result.signal if not done else GO
                if training.eval_interval and engine.step % training.eval_interval == 0 and not done and stop != CANCEL:
                    # Before the checkpoint: what follows from the loss is in it.
                    before = time.perf_counter()
                    self.evaluate()
                    stop = max(stop, self.agreed())
                    clock += time.perf_counter() - before
                if done or stop == PAUSE or engine.step % self.spec.checkpoint.interval == 0:
                    self.save()
                if stop != GO:
                    self.checkpoints.wait()
                    return Outcome("paused" if stop == PAUSE else "cancelled", None, engine.step)
        summary = self.summary(started)
        self.checkpoints.wait()
        if self.membership.rank == 0:
            self.reporter.result(summary)
        return Outcome("succeeded", summary, engine.step)

    def take_step(self, batch: list[Batch | None]) -> tuple[StepResult, dict[Part, float]]:
        """And its seconds by part, if it is one that is timed."""
        interval = self.spec.monitoring.timing_interval
        if interval is None or (self.engine.step + 1) % interval:
            return self.engine.train_step(batch, signal=self.wanted()), {}
        with StepTimer(self.engine.mesh.device) as timer:
            result = self.engine.train_step(batch, signal=self.wanted())
        return result, timer.seconds()

    def evaluate(self) -> None:
        loss = held_out_loss(self.engine, self.dataset)
        self.report({"eval_loss": loss, **self.dropout()})
        self.engine.recipe = self.engine.recipe.after_evaluation(loss, self.spec)

    def dropout(self) -> dict[str, float]:
        """The rate in force, where there is one."""
        rate = self.engine.recipe.dropout.rate
        return {"dropout": rate} if rate or self.spec.training.adaptive_dropout else {}

    def resume(self) -> None:
        """Rank 0 shuts out ghosts of earlier generations and chooses the newest whole checkpoint; all load that very one."""
        newest = self.choose_checkpoint()
        if newest is None:
            weights = initial_state(self.spec, self.tokenizer)
            if weights is not None:
                self.engine.load_weights(weights)
                log.info("starts from the weights in %s", self.spec.init_from)
            return
        state = self.state()
        self.checkpoints.load(newest, state)
        self.order.require(state["order"])
        self.engine.load_state_dict(state)
        self.train_loss = state["train_loss"]
        self.reporter.event(
            "checkpoint_loaded",
            f"rank {self.membership.rank} goes on from the checkpoint of step {newest.step}",
            rank=self.membership.rank,
            pid=os.getpid(),
            step=newest.step,
            path=str(newest.path),
        )
        log.info("loaded the checkpoint of step %d from %s", newest.step, newest.path)

    def choose_checkpoint(self) -> CheckpointInfo | None:
        """Rank 0's choice on every rank: two ranks that each looked for themselves could see different ones.

        Raises CheckpointMissing where a rank does not see the chosen one.
        """
        chosen = None
        if self.membership.rank == 0:
            self.checkpoints.fence(self.membership.generation)
            chosen = self.checkpoints.latest()
        word = torch.tensor([0 if chosen is None else chosen.step], device=self.engine.mesh.device)
        step = int(self.engine.mesh.sum(word))
        if step == 0 or self.membership.rank == 0:
            return chosen
        chosen = next((each for each in self.checkpoints.committed() if each.step == step), None)
        if chosen is None:
            raise CheckpointMissing(
                f"rank {self.membership.rank} on {socket.gethostname()} does not see the checkpoint of step {step} in"
                f" {self.checkpoints.directory}, which rank 0 goes on from; the storage must be shared by all nodes"
            )
        return chosen

    def state(self) -> dict[str, Any]:
        """No generator's state: whatever is random is a function of the seed and the step."""
        return {**self.engine.state_dict(), "order": self.order.state(), "train_loss": self.train_loss}

    def save(self) -> None:
        self.checkpoints.save(self.engine.step, self.state(), self.membership)

    def micro_batches(self, step: int) -> list[Batch | None]:
        """This rank's part of the global batch of ``step`` (from 0), which is an ordered list of micro-batches."""
        mine = deal(self.order.micro_batches(step), self.membership.rank, self.membership.world_size)
        return [None if part is None else self.dataset.rows("train", *part) for part in mine]

    def wanted(self) -> int:
        """Rank 0's word counts. It reaches the others with the step's own all-reduce, so all stop at the same boundary."""
        if self.membership.rank != 0:
            return GO
        if self.reporter.stale or self.reporter.desired is Desired.CANCELLED:
            return CANCEL
        return PAUSE if self.reporter.desired is Desired.PAUSED else GO

    def agreed(self) -> int:
        """``wanted`` of rank 0, on all ranks: what was asked for during an evaluation is done before the next step."""
        return int(self.engine.mesh.sum(torch.tensor([self.wanted()], device=self.engine.mesh.device)))

    def report_step(self, result: StepResult, seconds: float, waited: float, parts: dict[Part, float]) -> None:
        """``seconds``: from the end of the step before to the end of this one, all but evaluation. The wait for data, reports
        and the copy for a checkpoint count, so the figures are what the run really makes. ``waited`` of them for data."""
        step = self.engine.step
        self.reporter.heartbeat(step)
        self.train_loss = result.loss if math.isfinite(result.loss) else self.train_loss
        tokens = self.tokens_before(step)
        step_tokens = tokens - self.tokens_before(step - 1)
        self.trained_tokens += step_tokens
        self.trained_seconds += seconds
        lengths = self.order.row_lengths(step - 1)
        step_flops = step_tokens * sum(self.flops_of[length] for length in lengths) / len(lengths)
        self.trained_flops += step_flops
        if self.membership.rank != 0:
            return
        if not result.applied:
            self.report_skipped(result)
        if parts:
            self.step_parts = {str(part): value for part, value in parts.items()} | {"data_wait": waited}
        if parts or step % self.spec.monitoring.log_interval == 0 or step == self.total_steps:
            rate = step_tokens / seconds
            log.info("step %d of %d: loss %.4f, %.0f tokens/s", step, self.total_steps, result.loss, rate)
            self.report(
                {
                    "loss": result.loss,
                    "learning_rate": result.learning_rate,
                    "grad_norm": result.grad_norm,
                    "tokens": float(tokens),
                    "tokens_per_second": rate,
                    "step_seconds": seconds,
                    "data_wait_seconds": waited,
                    **{f"seconds_{part}": value for part, value in parts.items()},
                    **({"compiled_graphs": float(graphs_compiled())} if self.spec.training.compile else {}),
                    **({} if self.peak is None else {"mfu": step_flops / (seconds * self.peak)}),
                    **self.recipe_metrics(result),
                }
            )
        self.reporter.phase(Phase.TRAINING, step, self.total_steps, "steps")

    def recipe_metrics(self, result: StepResult) -> dict[str, float]:
        """What only some recipes have."""
        model, values = self.spec.model, self.dropout()
        if result.counts_LE.numel():
            load_LE = result.counts_LE.double() / result.counts_LE.double().mean(dim=-1, keepdim=True).clamp(min=1.0)
            # The busiest expert's load over the mean, in the worst layer: 1 is perfect balance. None is ever dropped.
            values["expert_load_max_over_mean"] = float(load_LE.max())
        if model.router_aux_loss_coef:
            values["balance_loss"] = result.balance
        if model.num_nextn_predict_layers:
            values["mtp_loss"] = result.further_loss
        if self.engine.recipe.loss_scale is not None:
            values["loss_scale"] = self.engine.recipe.scale
        return values

    def report_skipped(self, result: StepResult) -> None:
        message = f"step {self.engine.step} was skipped: loss {result.loss:.4g}, gradient norm {result.grad_norm:.4g}"
        log.warning(message)
        self.reporter.event("step_skipped", message, step=self.engine.step)

    def report(self, values: dict[str, float]) -> None:
        """Figures that are no numbers, of a step that was skipped, are left out."""
        if self.membership.rank == 0:
            self.reporter.metrics(self.engine.step, {key: value for key, value in values.items() if math.isfinite(value)})

    def summary(self, started: float) -> Summary:
        """Evaluate the final weights; all ranks take part."""
        eval_loss = held_out_loss(self.engine, self.dataset)
        self.report({"eval_loss": eval_loss})
        log.info("held-out loss %.4f after %d steps", eval_loss, self.engine.step)
        unigram_loss, bigram_loss = counting_losses(self.dataset, self.spec.training.eval_rows)
        seconds = self.trained_seconds or math.inf
        newest = self.checkpoints.directory / f"step-{self.engine.step:08d}"
        return Summary(
            steps=self.engine.step,
            tokens=self.tokens_before(self.engine.step),
            train_loss=self.train_loss,
            eval_loss=eval_loss,
            unigram_loss=unigram_loss,
            bigram_loss=bigram_loss,
            one_token_context_loss=held_out_loss(self.engine, self.dataset, one_token_context=True),
            tokens_per_second=self.trained_tokens / seconds,
            mfu=None if self.peak is None else self.trained_flops / (seconds * self.peak),
            step_parts=self.step_parts,
            checkpoint=str(newest),
            samples=sample_texts(self.engine, self.dataset, self.tokenizer),
            seconds=time.monotonic() - started,
        )


def prefetch(load: Callable[[int], T], steps: range) -> Generator[T, None, None]:
    """``load(step)`` for each step in order, the next one on a thread while the caller works on this one."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="manta-prefetch") as thread:
        ahead = [thread.submit(load, step) for step in steps[:1]]
        for step in steps:
            ready = ahead.pop()
            if step + 1 in steps:
                ahead.append(thread.submit(load, step + 1))
            yield ready.result()

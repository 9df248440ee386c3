"""The worker group of an attempt under Ray Train: started, watched, started again when a worker dies.

Each start is a new generation. Ray Train replaces all workers when one is gone; the run then goes on from its newest
checkpoint. What died, when, and what that cost goes to the service.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig

from data.errors import MantaError
from workers.attempt import Order
from workers.compat_ray import (
    Backend,
    BackendConfig,
    ControllerError,
    LeanTrainer,
    TrainingFailedError,
    WorkerGroupCallback,
    WorkerGroupError,
    is_dead,
)
from workers.early import EarlyWorkers, worker_resources
from workers.rank import (
    FailureNote,
    Place,
    Progress,
    attempt_dir,
    progress_path,
    read_notes,
    read_progress,
    run_rank,
    take_place,
)
from workers.reporter import Reporter
from workers.spec import TrainSpec

logger = logging.getLogger(__name__)


class WorkersFailed(MantaError):
    """A worker raised, or workers died more often than the job allows. ``report`` holds rank, node, step and log lines."""

    code: ClassVar[str] = "worker_failed"
    status: ClassVar[int] = 500

    def __init__(self, code: str, detail: str, **report: Any) -> None:
        super().__init__(detail, pointer=report.pop("pointer", None))
        self.failure_code = code
        self.report = report


@dataclass(frozen=True)
class GroupOutcome:
    """How the group ended on purpose: ``succeeded``, ``paused`` or ``cancelled``, with ``step`` optimizer steps done."""

    kind: str
    step: int


def run_group(
    order: Order, spec: TrainSpec, prepared: os.PathLike[str], reporter: Reporter, early: EarlyWorkers | None = None
) -> GroupOutcome:
    """Train on ``spec.world_size`` workers until they are done. Raises WorkersFailed.

    ``early``: the first group's workers, if they were started already (with ``worker_resources(spec)``).
    """
    directory = attempt_dir(order)
    directory.mkdir(parents=True, exist_ok=True)
    watch = _Watch(order, reporter)
    resources = worker_resources(spec)
    trainer = LeanTrainer(
        run_rank,
        train_loop_config={"order": order.model_dump(mode="json"), "prepared": str(prepared)},
        backend_config=_PlacesConfig(watch.starts),
        scaling_config=ScalingConfig(num_workers=spec.world_size, use_gpu="GPU" in resources, resources_per_worker=resources),
        run_config=RunConfig(
            name="ray",
            storage_path=str(directory),
            failure_config=FailureConfig(max_failures=spec.elastic.max_worker_restarts),
        ),
        watch=watch,
        retry=watch.may_retry,
        not_started=watch.not_started,
        early=early,
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise watch.explain(error, spec.elastic.max_worker_restarts) from error
    outcome = GroupOutcome(**result.return_value)
    watch.finish(outcome)
    return outcome


@dataclass
class _Starts:
    """Counts worker groups. The first is generation 0."""

    generation: int = -1


class _Places(Backend):
    """In place of torch's default process group: every worker is told its generation and where rank 0 listens."""

    def on_start(self, worker_group: Any, backend_config: "_PlacesConfig") -> None:
        backend_config.starts.generation += 1
        workers = worker_group.get_workers()
        address, port = ray.get(workers[0].execute_async(_free_address))
        places = [
            Place(
                generation=backend_config.starts.generation,
                rank=worker.distributed_context.world_rank,
                world_size=worker.distributed_context.world_size,
                local_rank=worker.distributed_context.local_rank,
                master_address=address,
                master_port=port,
                node=worker.metadata.node_id,
            )
            for worker in workers
        ]
        ray.get([worker.execute_async(take_place, place) for worker, place in zip(workers, places, strict=True)])


class _PlacesConfig(BackendConfig):
    def __init__(self, starts: _Starts) -> None:
        self.starts = starts

    @property
    def backend_cls(self) -> type[Backend]:
        return _Places


def _free_address() -> tuple[str, int]:
    import socket

    with socket.socket() as listener:
        listener.bind(("", 0))
        return ray.util.get_node_ip_address(), listener.getsockname()[1]


@dataclass(frozen=True)
class _Death:
    generation: int
    at: float
    step: int | None
    last_step_time: float | None
    ranks: list[int] = field(default_factory=list)


class _Watch(WorkerGroupCallback):
    """Ray's controller calls it at every poll: it reports deaths, and the first step after one."""

    def __init__(
        self,
        order: Order,
        reporter: Reporter,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.order = order
        self.reporter = reporter
        self.clock = clock
        self.pause = pause
        self.starts = _Starts()
        self.deaths: list[_Death] = []
        self._workers: dict[int, Any] = {}
        self._open: _Death | None = None
        self._not_started = ""

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        self._not_started = ""
        self._workers = {worker.distributed_context.world_rank: worker for worker in worker_group.get_workers()}
        self.reporter.adopt(before_generation=self.starts.generation)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        if errors := worker_group_status.errors:
            self._failed(errors)
        else:
            self.look()

    def look(self) -> None:
        """Has a step been made since the last death? Then say what the death cost."""
        death = self._open
        progress = read_progress(progress_path(self.order, 0)) if death is not None else None
        if death is None or progress is None or progress.generation <= death.generation:
            return
        self._resumed(
            death,
            f"step {progress.first_step} was made",
            progress.generation,
            progress.first_step,
            progress.first_time,
            lost=max(0, (death.step or 0) - (progress.first_step - 1)),
        )

    def finish(self, outcome: GroupOutcome) -> None:
        """A death after the last step (in the final evaluation, say) is over when the run is: no step follows it."""
        self.look()
        if self._open is not None:
            self._resumed(
                self._open, f"the run ended ({outcome.kind})", self.starts.generation, outcome.step, self.clock(), lost=0
            )

    def _resumed(self, death: _Death, what: str, generation: int, step: int, at: float, *, lost: int) -> None:
        self._open = None
        cost = at - (death.at if death.last_step_time is None else death.last_step_time)
        self.reporter.event(
            "training_resumed",
            f"{what} {cost:.1f} s after step {death.step}; {lost} steps were made again",
            generation=generation,
            step=step,
            cost_seconds=round(cost, 3),
            seconds_since_detection=round(at - death.at, 3),
            lost_steps=lost,
            ranks=death.ranks,
        )

    def not_started(self, error: BaseException) -> None:
        """A worker group did not start. The same words again and again, as while there is no room, are said once."""
        if str(error) != self._not_started:
            self._not_started = str(error)
            self.reporter.event("workers_not_started", f"{type(error).__name__}: {error}")

    def _failed(self, errors: dict[int, BaseException]) -> None:
        dead = [rank for rank in self._workers if rank in errors and is_dead(errors[rank])]
        # A survivor's broken collective is often seen first; whose process is really gone?
        dead = dead or _gone(self._workers)
        at, generation = self.clock(), self.starts.generation
        steps = [p for rank in self._workers if (p := self._progress(rank))]
        step = max((p.last_step for p in steps), default=None)
        last = max((p.last_time for p in steps), default=None)
        for rank in sorted(dead):
            worker, own = self._workers[rank].metadata, self._progress(rank)
            place = {"rank": rank, "pid": worker.pid, "node": worker.node_id, "host": worker.hostname}
            own_step = own.last_step if own else None
            self.reporter.worker("died", **place)
            self.reporter.event(
                "worker_died",
                f"rank {rank} (pid {worker.pid} on {worker.hostname}) died after step {own_step}",
                generation=generation,
                step=own_step,
                **place,
            )
        self._open = _Death(generation, at, step, last, sorted(dead))
        self.deaths.append(self._open)

    def _progress(self, rank: int) -> Progress | None:
        progress = read_progress(progress_path(self.order, rank))
        return progress if progress is not None and progress.generation == self.starts.generation else None

    def may_retry(self, error: WorkerGroupError) -> bool:
        """A death, or a connection that broke: yes. An exception of the user's or of ours would only come again: no."""
        if self.deaths and self.deaths[-1].ranks:
            return True
        notes = self._all_notes()
        return bool(notes) and all(note.retry for note in notes)

    def _all_notes(self, patience: float = 2.0) -> list[FailureNote]:
        """One rank's exception breaks the others' connections; wait a moment for the note of the one that began."""
        deadline = self.clock() + patience
        while len(notes := read_notes(self.order, self.starts.generation)) < len(self._workers):
            if any(not note.retry for note in notes) or self.clock() > deadline:
                break
            self.pause(0.05)
        return notes

    def explain(self, error: TrainingFailedError, restarts: int) -> WorkersFailed:
        """The one fault behind ``error``, in the words of the worker that had it."""
        if isinstance(error, ControllerError):  # there was no worker to have it
            return WorkersFailed("workers_not_started", f"{error}; {restarts} restarts of workers were allowed")
        notes = read_notes(self.order, self.starts.generation)
        own = [note for note in notes if not note.retry]
        death = self.deaths[-1] if self.deaths else None
        if own:
            return _as_failure(own[0])
        if death is not None and death.ranks:
            worker = self._workers[death.ranks[0]].metadata
            detail = f"rank {death.ranks[0]} died; {restarts} restarts of workers were allowed and are spent"
            return WorkersFailed("worker_died", detail, rank=death.ranks[0], node=worker.node_id, step=death.step, log_tail=[])
        if notes:
            return _as_failure(notes[0])
        if isinstance(error, WorkerGroupError):
            rank, cause = next(iter(error.worker_failures.items()))
            code = cause.code if isinstance(cause, MantaError) else "worker_failed"
            return WorkersFailed(code, f"{type(cause).__name__}: {cause}", rank=rank)
        return WorkersFailed("workers_not_started", str(error))


def _as_failure(note: FailureNote) -> WorkersFailed:
    return WorkersFailed(
        note.code,
        note.detail,
        pointer=note.pointer,
        rank=note.rank,
        node=note.node,
        step=note.step,
        log_tail=note.log_tail,
    )


def _gone(workers: dict[int, Any], timeout: float = 1.0) -> list[int]:
    """Ranks of those whose process has ended, as Ray says within ``timeout`` seconds. One that is slow is not gone."""
    asked = {worker.execute_async(os.getpid): rank for rank, worker in workers.items()}
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout)
    gone = []
    for answer in answered:
        try:
            ray.get(answer)
        except ray.exceptions.RayActorError:
            gone.append(asked[answer])
    return gone

"""Trials on warm Ray actors: one a slot, started when first needed and replaced when it dies."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from tuning.trials import Assignment, Ended, ForkFailed, News
from tuning.worker import TrialRun, TrialWorker
from workers.spec import TrainSpec

logger = logging.getLogger(__name__)


@dataclass
class _Slot:
    place: int
    worker: Any = None
    number: int | None = None
    """Of the trial that it trains."""
    call: Any = field(default=None)
    """What its worker is asked, while it has not answered."""


class ActorTrials:
    """
    Args:
        resources: of one worker, ``CPU`` and ``GPU``.
        prepared: the data set of a job.
        attempt: of the study; checkpoints of an earlier attempt's ghosts are refused.
    """

    def __init__(
        self,
        slots: int,
        resources: Mapping[str, float],
        job_dir: Path,
        attempt: int,
        prepared: Callable[[TrainSpec], Path],
    ) -> None:
        self._slots = [_Slot(place) for place in range(slots)]
        self._job_dir, self._attempt, self._prepared = job_dir, attempt, prepared
        self._begun = 0
        self._actor = ray.remote(num_cpus=resources.get("CPU", 0), num_gpus=resources.get("GPU", 0))(TrialWorker)

    @property
    def free(self) -> int:
        return sum(slot.number is None for slot in self._slots)

    def begin(self, assignment: Assignment) -> None:
        slot = next(slot for slot in self._slots if slot.number is None)
        job = TrainSpec.model_validate(assignment.job)
        self._begun += 1
        run = TrialRun(
            number=assignment.number,
            job=assignment.job,
            prepared=str(self._prepared(job)),
            directory=str(trial_directory(self._job_dir, assignment.number)),
            begun=(self._attempt << 32) + self._begun,
            until=assignment.until,
        )
        if slot.worker is None:
            slot.worker = self._actor.remote(str(self._job_dir), self._attempt, slot.place)
        slot.number, slot.call = assignment.number, slot.worker.begin.remote(run)

    def answer(self, number: int, go_on: bool) -> None:
        slot = next(slot for slot in self._slots if slot.number == number)
        slot.call = slot.worker.answer.remote(go_on)

    def fork(self, parent: int, child: int, step: int) -> None:
        from workers.checkpoint_files import copy_checkpoint  # imports torch

        source, target = (trial_directory(self._job_dir, number) / "checkpoints" for number in (parent, child))
        try:
            target.mkdir(parents=True, exist_ok=True)
            copy_checkpoint(source / f"step-{step:08d}", target)
        except OSError as error:
            raise ForkFailed(f"the checkpoint of trial {parent} at step {step} cannot be copied: {error}") from error

    def news(self, timeout: float) -> Sequence[News]:
        calls = {slot.call: slot for slot in self._slots if slot.call is not None}
        ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0) if calls else ([], [])
        if calls and not ready:
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=timeout)
        return [self._heard(calls[call]) for call in ready]

    def _heard(self, slot: _Slot) -> News:
        assert slot.number is not None
        number, call, slot.call = slot.number, slot.call, None
        try:
            news: News = ray.get(call)
        except RayError as error:
            logger.warning("the worker of trial %d died: %s", number, error)
            slot.worker = slot.number = None
            return Ended(number, "failed", code="worker_died", reason=str(error).splitlines()[0], retry=True)
        if isinstance(news, Ended):
            slot.number = None
        return news

    def close(self) -> None:
        """End all trials where they stand; begun again, they go on from their checkpoints."""
        for slot in self._slots:
            if slot.worker is not None:
                ray.kill(slot.worker)
            slot.worker = slot.number = slot.call = None


def trial_directory(job_dir: Path, number: int) -> Path:
    """A trial's storage: ``checkpoints/`` and ``measured.json``, as ``TrialRun.directory``."""
    return job_dir / "trials" / f"{number:05d}"

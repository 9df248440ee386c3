"""A warm process that trains one trial after another: imports, allocator and data set stay.

Each call returns with the next thing that happens: a measurement, at which the trial waits, or the trial's end. While it
trains, the actor's main thread sleeps in that call, so Ray does not wake it (see ``workers.early``).
"""

import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import MantaError
from tuning.measurements import Measurements
from tuning.trials import Ended, Measured, News
from workers.attempt import Desired, ReportKind
from workers.logs import log_path, logged_to
from workers.reporter import NullReporter
from workers.spec import TrainSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialRun:
    """One beginning of a trial. ``begun`` grows with each, so that a ghost of an earlier one cannot commit a checkpoint."""

    number: int
    job: Mapping[str, Any]
    prepared: str
    directory: str
    """Of the trial: ``checkpoints/``, and ``measured.json``, what it had measured when it was interrupted."""
    begun: int
    until: int | None = None
    """As in ``Assignment``."""


class _Stop(BaseException):
    """Ends a trial where it stands. No ``Exception``: nothing in training is to take it for a fault."""


class _TrialReporter(NullReporter):
    """Hands measurements over and waits for what is said to them."""

    def __init__(self, run: TrialRun, total_steps: int, news: "queue.Queue[News]") -> None:
        self._number, self._until, self._total_steps, self._news = run.number, run.until, total_steps, news
        self._file = Path(run.directory) / "measured.json"
        self._began = time.monotonic()
        self._answers: queue.Queue[bool] = queue.Queue(1)
        self.measured = Measurements()
        """With those of earlier beginnings, after ``recall``."""
        self.last_step = 0

    def answer(self, go_on: bool) -> None:
        self._answers.put(go_on)

    def recall(self) -> None:
        self.measured = Measurements.read(self._file)

    def remember(self) -> None:
        self.measured.write(self._file, time.monotonic() - self._began)

    def _report(self, kind: ReportKind, data: dict[str, Any]) -> None:
        if kind == "heartbeat" and data["step"] == self._until:
            self.desired = Desired.PAUSED  # heard after the step's evaluation
        if kind != "metrics":
            return
        self.last_step = data["step"]
        self.measured.hear(data["values"])
        if "eval_loss" in data["values"] or data["step"] == self._total_steps:
            self.remember()
        if "eval_loss" in data["values"] and data["step"] < self._total_steps:
            self._news.put(Measured(self._number, data["step"], dict(self.measured.metrics)))
            if not self._answers.get():
                raise _Stop


class TrialWorker:
    """Runs as a Ray actor with one call at a time; ``begin`` and ``answer`` alternate as ``News`` ask for it."""

    def __init__(self, job_dir: str, attempt: int, place: int) -> None:
        from workers.allocator import keep_freed_memory

        keep_freed_memory()
        self._log = log_path(Path(job_dir), attempt, place)
        self._news: queue.Queue[News] = queue.Queue()
        self._reporter: _TrialReporter | None = None

    def begin(self, run: TrialRun) -> News:
        spec = TrainSpec.model_validate(run.job)
        self._reporter = _TrialReporter(run, spec.total_steps, self._news)
        threading.Thread(target=self._train, args=(run, spec, self._reporter), name=f"trial-{run.number}", daemon=True).start()
        return self._news.get()

    def answer(self, go_on: bool) -> News:
        assert self._reporter is not None, "a trial is begun before it is answered"
        self._reporter.answer(go_on)
        return self._news.get()

    def _train(self, run: TrialRun, spec: TrainSpec, reporter: _TrialReporter) -> None:
        with logged_to(self._log):
            logger.info("trial %d begins", run.number)
            self._news.put(_outcome(run, spec, reporter))


def _outcome(run: TrialRun, spec: TrainSpec, reporter: _TrialReporter) -> Ended:
    try:
        metrics = train_trial(run, spec, reporter)
    except _Stop:
        return Ended(run.number, "stopped")
    except MantaError as error:
        logger.error("trial %d: %s: %s", run.number, error.code, error.detail)
        return Ended(run.number, "failed", code=error.code, reason=error.detail)
    except Exception as error:  # whatever a trial died of, the study goes on, and shows it
        logger.exception("trial %d failed at step %d", run.number, reporter.last_step)
        reason = f"at step {reporter.last_step + 1}: {type(error).__name__}: {error}"
        return Ended(run.number, "failed", code="worker_failed", reason=reason, retry=True)
    return Ended(run.number, "paused") if metrics is None else Ended(run.number, "succeeded", metrics)


def train_trial(run: TrialRun, spec: TrainSpec, reporter: _TrialReporter) -> dict[str, float] | None:
    """The trial's figures, as ``Measurements.at_the_end``. None: it is paused, at ``run.until``."""
    from data.dataset import PackedDataset
    from workers.checkpoint import CheckpointStore
    from workers.loop import train
    from workers.mesh import Membership

    checkpoints = CheckpointStore(
        Path(run.directory) / "checkpoints", spec.checkpoint.keep_last, spec.checkpoint.asynchronous, attempt=run.begun
    )
    try:
        if run.until is not None and (newest := checkpoints.latest()) is not None and newest.step >= run.until:
            return None
        reporter.recall()
        outcome = train(spec, Membership(), PackedDataset.open(Path(run.prepared)), checkpoints, reporter)
    finally:
        checkpoints.close()
    if outcome.summary is None:
        reporter.remember()
        return None
    return reporter.measured.at_the_end(outcome.summary.model_dump(), spec)

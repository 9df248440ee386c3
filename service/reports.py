"""Reports of attempts into the store: each exactly once, in whatever order they come.

A batch is one transaction. Which sequences of a reporter were stored is kept as ranges, so a batch that is sent again, or
half of one, adds only what is new; and every table has a rule by which the newest figures stand whatever came last.
"""

import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from data.errors import MantaError
from service.attempts import newest_attempt
from service.journal import write_journal
from service.models import Attempt, Checkpoint, Event, Job, Metric, Receipt, Worker
from service.moves import attempt_actor, move
from service.progress import PhaseProgress, advance
from service.states import JobState, Reason
from service.store import Store
from service.text import clean
from workers.attempt import Phase, Report, ReportAnswer, ReportBatch

logger = logging.getLogger(__name__)


class MalformedReport(MantaError):
    """A report's ``data`` does not have the fields of its kind."""

    code = "malformed_report"
    status = 422


Count = Field(ge=0, le=2**62)


class _Phase(BaseModel):
    phase: Phase
    done: int = Count
    total: int | None = Field(default=None, ge=0, le=2**62)
    unit: str = ""
    reused: bool = False


class _Metrics(BaseModel):
    step: int = Count
    values: dict[str, float]


class _Event(BaseModel):
    type: str = Field(min_length=1, max_length=64)
    message: str = ""


class _Worker(BaseModel):
    rank: int | None = Field(default=None, ge=-1, le=2**31)
    pid: int = Field(default=0, ge=0, le=2**31)
    node: str = ""
    host: str = ""
    state: Literal["started", "ended", "died"]


class _Heartbeat(BaseModel):
    step: int | None = Field(default=None, ge=0, le=2**62)


class _Checkpoint(BaseModel):
    step: int = Count
    path: str
    bytes: int = Field(default=0, ge=0, le=2**62)
    state: Literal["committed", "deleted"]


class _Journal(BaseModel):
    first: int = Count
    lines: list[dict[str, Any]]


class _Ended(BaseModel):
    outcome: Literal["succeeded", "failed", "paused", "cancelled"]


Ranges = list[list[int]]

MAX_TIME = 1e11
"""Unix seconds, in the year 5138: what is later (or earlier than 1970) is a broken clock or other units."""

MAX_RANGES = 256
"""A reporter sends in order, so gaps are few. Beyond this many the oldest gap counts as received: it will not be filled."""


def missing(received: Ranges, sequence: int) -> bool:
    at = bisect_right(received, sequence, key=lambda each: each[0])
    return at == 0 or received[at - 1][1] < sequence


def add(received: Ranges, sequences: Iterable[int]) -> Ranges:
    """Closed ranges with ``sequences`` in them; neighbours are joined."""
    merged: Ranges = []
    for low, high in sorted([*received, *([s, s] for s in sequences)]):
        if merged and low <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], high)
        else:
            merged.append([low, high])
    excess = len(merged) - MAX_RANGES
    return merged if excess <= 0 else [[merged[0][0], merged[excess][1]], *merged[excess + 1 :]]


class Reports:
    """Takes the batches that attempts send."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    def ingest(self, job_id: str, attempt: int, token: str, batch: ReportBatch) -> ReportAnswer:
        """Store what is new of ``batch``; the answer is what the user wants of the job.

        Raises ``StaleAttempt``, ``InvalidToken`` and ``MalformedReport``; then nothing of the batch is stored.
        """
        return self._ingest(job_id, attempt, [(report, _parse(report)) for report in batch.reports], token=token)

    def ingest_left_behind(self, job_id: str, attempt: int, reports: Sequence[Report]) -> ReportAnswer:
        """The same for reports that the supervisor found on disk: their writer is gone, and needs no token.

        Nobody is there to send a malformed one better: it is passed over, the others are stored.
        """
        parsed: list[Parsed] = []
        for report in reports:
            try:
                parsed.append((report, _parse(report)))
            except MalformedReport as error:
                logger.warning("job %s: a report that attempt %s left behind was not taken: %s", job_id, attempt, error)
        return self._ingest(job_id, attempt, parsed, token=None)

    def _ingest(self, job_id: str, number: int, parsed: "Sequence[Parsed]", token: str | None) -> ReportAnswer:
        now = self._clock()
        with self._store.write() as session:
            job, attempt = newest_attempt(session, job_id, number, token)
            if token is not None:  # what lies on a disk is no sign of life
                attempt.reported_at = now
            new = _take(session, job_id, number, parsed)
            before = (job.state, attempt.outcome, attempt.generation)
            _Apply(session, job, attempt, now).all(new)
            lifecycle = before != (job.state, attempt.outcome, attempt.generation)
            if attempt.outcome != before[1]:
                job.look_at = 0.0
            desired = job.desired
        if parsed:
            self._store.changed(job_id, lifecycle=lifecycle)
        return ReportAnswer(desired=desired)


Parsed = tuple[Report, BaseModel | None]
_SHAPES: dict[str, type[BaseModel]] = {
    "phase": _Phase,
    "metrics": _Metrics,
    "event": _Event,
    "worker": _Worker,
    "heartbeat": _Heartbeat,
    "checkpoint": _Checkpoint,
    "journal": _Journal,
    "ended": _Ended,
}


def _parse(report: Report) -> BaseModel | None:
    if not (0 <= report.generation < 2**31 and -1 <= report.rank < 2**31 and 0 <= report.sequence < 2**62):
        raise MalformedReport("generation, rank or sequence is out of range")
    if not 0 <= report.time <= MAX_TIME:  # NaN too
        raise MalformedReport(f"{report.kind} report {report.sequence} of rank {report.rank}: time {report.time} is no time")
    shape = _SHAPES.get(report.kind)
    try:
        return shape.model_validate(report.data) if shape else None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise MalformedReport(
            f"{report.kind} report {report.sequence} of rank {report.rank}: {where}: {first['msg']}"
        ) from error


def _take(session: Session, job_id: str, attempt: int, parsed: Sequence[Parsed]) -> list[Parsed]:
    """The reports that were not stored before; their receipts are written."""
    known = select(Receipt).where(Receipt.job_id == job_id, Receipt.attempt == attempt)
    receipts = {(each.generation, each.rank): each for each in session.scalars(known)}
    new: dict[tuple[int, int], dict[int, Parsed]] = {}
    for report, data in parsed:
        receipt = receipts.get((report.generation, report.rank))
        if receipt is None or missing(receipt.received, report.sequence):
            new.setdefault((report.generation, report.rank), {})[report.sequence] = (report, data)
    for (generation, rank), by_sequence in new.items():
        receipt = receipts.get((generation, rank))
        if receipt is None:
            receipt = Receipt(job_id=job_id, attempt=attempt, generation=generation, rank=rank, received=[])
            session.add(receipt)
        receipt.received = add(receipt.received, by_sequence)
    return [each for by_sequence in new.values() for _, each in sorted(by_sequence.items())]


class _Apply:
    """New reports onto the rows of one job, whose row the transaction holds."""

    def __init__(self, session: Session, job: Job, attempt: Attempt, now: float) -> None:
        self.session = session
        self.job = job
        self.attempt = attempt
        self.now = now
        self.actor = attempt_actor(attempt.number)

    def all(self, reports: Sequence[Parsed]) -> None:
        metrics: list[tuple[Report, _Metrics]] = []
        events: list[dict[str, Any]] = []
        workers = self._workers() if any(report.kind in ("worker", "heartbeat") for report, _ in reports) else {}
        for report, data in reports:
            if report.rank >= 0:
                self._generation(report.generation)
            match data:
                case _Metrics():
                    metrics.append((report, data))
                case _Event():
                    events.append(self._event(report, data))
                case _Phase():
                    self._phase(report, data)
                case _Worker() | _Heartbeat():
                    self._worker(workers, report, data)
                case _Checkpoint():
                    self._checkpoint(report, data)
                case _Journal():
                    write_journal(self.session, self.job.id, data.first, data.lines)
                case _Ended():
                    self.attempt.outcome, self.attempt.outcome_at = data.outcome, self.now
                case _ if report.kind == "result":
                    self.attempt.result = clean(report.data)
                case _ if report.kind == "failure":
                    self.attempt.failure = clean(report.data)
        if metrics:
            self._metrics(metrics)
        if events:
            self.session.execute(insert(Event), events)

    def _generation(self, generation: int) -> None:
        """A generation beyond an attempt's first is a restart of its workers; they may be heard of in any order."""
        attempt = self.attempt
        if attempt.first_generation is None:
            attempt.first_generation = attempt.generation = generation
            return
        span = attempt.generation - attempt.first_generation
        attempt.first_generation = min(attempt.first_generation, generation)
        attempt.generation = max(attempt.generation, generation)
        self.job.restarts += attempt.generation - attempt.first_generation - span

    def _event(self, report: Report, data: _Event) -> dict[str, Any]:
        more = {name: value for name, value in report.data.items() if name not in ("type", "message")}
        return {
            "job_id": self.job.id,
            "at": report.time,
            "type": clean(data.type),
            "actor": self.actor,
            "message": clean(data.message),
            "data": clean({"generation": report.generation, "reporter": report.rank, **more}),
        }

    def _phase(self, report: Report, data: _Phase) -> None:
        old: PhaseProgress | None = self.job.progress.get(data.phase.value)
        new = PhaseProgress(
            attempt=self.attempt.number,
            generation=report.generation,
            done=data.done,
            total=data.total,
            unit=clean(data.unit),
            reused=data.reused,
            samples=[[report.time, float(data.done)]],
        )
        self.job.progress = {**self.job.progress, data.phase.value: advance(old, new)}
        if data.phase in (Phase.TRAINING, Phase.TRIALS) and self.job.state is JobState.PREPARING:
            look_at = self.job.look_at  # the supervisor has nothing to do about it
            move(self.session, self.job, JobState.RUNNING, Reason.TRAINING, self.actor, self.now)
            self.job.look_at = look_at

    def _workers(self) -> dict[tuple[int, int], Worker]:
        mine = select(Worker).where(Worker.job_id == self.job.id, Worker.attempt == self.attempt.number)
        return {(each.generation, each.rank): each for each in self.session.scalars(mine)}

    def _worker(self, workers: dict[tuple[int, int], Worker], report: Report, data: _Worker | _Heartbeat) -> None:
        rank = data.rank if isinstance(data, _Worker) and data.rank is not None else report.rank
        worker = workers.get((report.generation, rank))
        if worker is None:
            worker = Worker(
                job_id=self.job.id,
                attempt=self.attempt.number,
                generation=report.generation,
                rank=rank,
                node="",
                pid=0,
                state="started",
                heartbeat_at=report.time,
            )
            workers[report.generation, rank] = worker
            self.session.add(worker)
        if isinstance(data, _Heartbeat):
            worker.heartbeat_at = max(worker.heartbeat_at, report.time)
            if data.step is not None:
                worker.step = max(worker.step or 0, data.step)
            return
        worker.pid = data.pid or worker.pid
        worker.node = clean(data.node or data.host) or worker.node
        if worker.state == "started":  # a late "started" does not bring a dead worker back
            worker.state = data.state

    def _checkpoint(self, report: Report, data: _Checkpoint) -> None:
        at = select(Checkpoint).where(Checkpoint.job_id == self.job.id, Checkpoint.step == data.step)
        kept = self.session.scalar(at)
        age = (self.attempt.number, report.generation)
        if kept is None:
            kept = Checkpoint(job_id=self.job.id, step=data.step)
            self.session.add(kept)
        elif (kept.attempt, kept.generation) > age or ((kept.attempt, kept.generation) == age and kept.state == "deleted"):
            return
        kept.attempt, kept.generation = age
        kept.path, kept.bytes, kept.state, kept.created_at = clean(data.path), data.bytes, data.state, report.time

    def _metrics(self, reports: Sequence[tuple[Report, _Metrics]]) -> None:
        """Of a repeated step the newest (attempt, generation)'s figures stand, in a new row: readers by id see it again."""
        steps = {data.step for _, data in reports}
        at = select(Metric).where(Metric.job_id == self.job.id, Metric.step.in_(steps))
        old = {each.step: each for each in self.session.scalars(at)}
        rows: dict[int, dict[str, Any]] = {}
        for report, data in reports:
            row = rows.get(data.step) or (_row(old[data.step]) if data.step in old else None)
            merged = _merge(row, self.job.id, self.attempt.number, report, data)
            if merged is not row:
                rows[data.step] = merged
        for step in rows.keys() & old.keys():
            self.session.delete(old[step])
        if rows:
            self.session.flush()
            self.session.execute(insert(Metric), [rows[step] for step in sorted(rows)])


def _row(metric: Metric) -> dict[str, Any]:
    names = ("job_id", "attempt", "generation", "step", "at", "figures")
    return {name: getattr(metric, name) for name in names}


def _merge(row: dict[str, Any] | None, job_id: str, attempt: int, report: Report, data: _Metrics) -> dict[str, Any]:
    """``row`` with one report in it (a new dict), or ``row`` itself when the report is of an older generation.

    Figures of one name and step stand by rank (the lowest), then by sequence (the latest): the order of arrival is nothing.
    """
    new = {clean(name): [clean(value), report.rank, report.sequence] for name, value in data.values.items()}
    age = (attempt, report.generation)
    if row is not None and (row["attempt"], row["generation"]) > age:
        return row
    if row is not None and (row["attempt"], row["generation"]) == age:
        for name, figure in row["figures"].items():
            if name not in new or (-figure[1], figure[2]) > (-new[name][1], new[name][2]):
                new[name] = figure
        at = max(row["at"], report.time)
    else:
        at = report.time
    return {
        "job_id": job_id,
        "attempt": attempt,
        "generation": report.generation,
        "step": data.step,
        "at": at,
        "figures": dict(sorted(new.items())),
    }

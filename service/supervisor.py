"""Drives every job to where its user wants it: claims by lease, submits attempts, watches them, decides.

Each step loads in one short transaction, talks to the cluster in none, and writes in another that the lease guards. What
happens when is in ``policies``; here it is only carried out. A service that dies between any two lines goes on from the
rows when it is started again: submission ids are deterministic, and to submit or stop twice is harmless.
"""

import logging
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from service import aftermath, wishes
from service.attempts import hash_token
from service.jobs import job_directory
from service.launcher import TERMINAL, Capacity, Launcher, LauncherUnavailable, LaunchStatus
from service.models import Attempt, Job, Worker
from service.moves import SUPERVISOR, move, record
from service.observe import observe, waits_for
from service.orders import order_path, write_order
from service.policies import (
    Budgets,
    Decision,
    Grace,
    after_attempt,
    must_stop,
    next_look,
)
from service.reports import Reports
from service.spec import KINDS
from service.states import FINAL, LIVE, JobState, Reason
from service.store import Change, Lease, StaleLease, Store, advisory_lock, give_back, wake_queue
from workers.attempt import Order

logger = logging.getLogger(__name__)

DATABASE_AWAY = (OperationalError, InterfaceError, PoolTimeout)


@dataclass(frozen=True)
class SupervisorSettings:
    owner: str
    """Names this supervisor's leases. Two that live at once need two names; one that is started again keeps its own."""
    service_url: str
    """Base of the API as workers reach it."""
    home: Path
    """``jobs/<id>`` and ``prepared`` lie below it; the cluster's nodes see it too."""
    python: str = sys.executable
    """The interpreter on the cluster."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment of every driver."""
    lease_seconds: float = 90.0
    """Longer than any call of the launcher takes."""
    idle_seconds: float = 1.0
    """How long ``run`` sleeps at most; submits, cancels and last words wake it at once."""
    queue_seconds: float = 3.0
    """Between two looks at a job that waits for resources, and the age at which the cluster's capacity is asked again."""
    retry_seconds: float = 30.0
    """From a look at a job that failed unexpectedly to the next."""
    budgets: Budgets = field(default_factory=Budgets)
    grace: Grace = field(default_factory=Grace)


class Supervisor:
    """``run`` in a thread of its own, or ``tick`` by tick; ``clock`` is Unix seconds."""

    def __init__(
        self, store: Store, launcher: Launcher, settings: SupervisorSettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._launcher = launcher
        self._settings = settings
        self._clock = clock
        self._reports = Reports(store, clock=clock)
        self._capacity: tuple[float, Capacity] | None = None
        self._wake = threading.Event()
        self._stopping = threading.Event()

    def run(self) -> None:
        """Until ``stop``. A database that does not answer is waited for."""
        leave = self._store.subscribe(self._on_change)
        try:
            while not self._stopping.is_set():
                self._wake.clear()
                try:
                    self.tick()
                    pause = self._pause()
                except DATABASE_AWAY as error:
                    logger.warning("the database does not answer: %s", error)
                    pause = self._settings.idle_seconds
                self._wake.wait(pause)
        finally:
            leave()

    def stop(self) -> None:
        """``run`` returns after the step it is in. Jobs go on without it."""
        self._stopping.set()
        self._wake.set()

    def _on_change(self, change: Change) -> None:
        if change.lifecycle:
            self._wake.set()

    def _pause(self) -> float:
        due = self._store.next_look()
        idle = self._settings.idle_seconds
        return idle if due is None else min(max(due - self._clock(), 0.0), idle)

    def tick(self) -> int:
        """One look at every job that is due. Returns how many were."""
        leases = self._store.claim(self._settings.owner, self._clock(), self._settings.lease_seconds)
        for lease in leases:
            try:
                self._look(lease)
            except StaleLease:
                logger.info("job %s is another supervisor's now, or has ended", lease.job_id)
            except DATABASE_AWAY:
                raise
            except Exception:
                # The one broad catch: whatever is wrong with one job (a defect, a broken disk) must not stop the others.
                logger.exception(
                    "job %s: the look at it failed; the next is in %g s", lease.job_id, self._settings.retry_seconds
                )
                self._put_off(lease)
        return len(leases)

    def _put_off(self, lease: Lease) -> None:
        try:
            self._store.release(lease, self._clock() + self._settings.retry_seconds)
        except StaleLease:
            logger.info("job %s is another supervisor's now, or has ended", lease.job_id)

    def _look(self, lease: Lease) -> None:
        with self._store.step(lease) as (session, job):
            attempt = _newest(session, job)
        if job.state is JobState.QUEUED:
            self._start(lease, job, attempt)
        elif job.state not in LIVE:
            self._clear_away(lease, attempt)
        elif attempt is None:
            raise RuntimeError(f"job {job.id} is {job.state} and has no attempt {job.attempt}")
        elif attempt.state == "submitting" and job.state in (JobState.PREPARING, JobState.RUNNING):
            self._submit(lease, job, attempt)
        else:
            self._watch(lease, job, attempt)

    # -- a queued job ------------------------------------------------------------------------------------------------------

    def _start(self, lease: Lease, job: Job, last: Attempt | None) -> None:
        """A new attempt once the job's resources are free, else say what it waits for."""
        try:
            if last is not None and not last.gone and not self._laid_to_rest(lease, last):
                self._wait(lease, f"waits until attempt {last.number}, which was lost, has stopped", 1.0)
                return
            capacity = self._cluster_capacity()
        except LauncherUnavailable as error:
            self._wait(lease, f"the cluster does not answer: {error.detail}", self._settings.queue_seconds)
            return
        with self._store.read() as session:
            why = waits_for(session, job, capacity)
        if why is not None:
            self._wait(lease, why, self._settings.queue_seconds)
            return
        try:
            if job.kind == "tune":
                aftermath.hand_over(self._store, job_directory(self._settings.home, job.id), job)
            order = self._write_order(job, job.attempt + 1)
        except OSError as error:
            self._wait(lease, f"cannot write to the job's storage: {error}", self._settings.queue_seconds)
            return
        with self._store.step(lease) as (session, job):
            if _moved_on(job):
                return
            advisory_lock(session.connection(), "start")  # two supervisors must not give the same CPUs away
            why = waits_for(session, job, capacity)
            if why is None:
                attempt = self._new_attempt(session, job, order)
        if why is not None:
            self._wait(lease, why, self._settings.queue_seconds)
            return
        self._store.changed(job.id, lifecycle=True)
        self._submit(lease, job, attempt)

    def _wait(self, lease: Lease, why: str, seconds: float) -> None:
        with self._store.step(lease) as (_, job):
            if _moved_on(job):
                return
            new = job.why_pending != why
            job.why_pending = why
            give_back(job, self._clock() + seconds)
        if new:
            self._store.changed(job.id, lifecycle=False)

    def _cluster_capacity(self) -> Capacity:
        now = self._clock()
        if self._capacity is None or not 0 <= now - self._capacity[0] < self._settings.queue_seconds:
            self._capacity = now, self._launcher.capacity()
        return self._capacity[1]

    def _laid_to_rest(self, lease: Lease, attempt: Attempt) -> bool:
        """Whether nothing of an attempt runs that was given up while the cluster was away."""
        self._launcher.stop(attempt.submission_id)
        status = self._launcher.status(attempt.submission_id)
        if status.state not in TERMINAL and status.state != "unknown":
            return False
        with self._store.step(lease) as (session, job):
            newest = _newest(session, job)
            if newest is not None:
                newest.gone = True
        return True

    def _clear_away(self, lease: Lease, attempt: Attempt | None) -> None:
        """A paused or failed job whose attempt was given up unseen: end what may run of it, and change nothing else."""
        try:
            gone = attempt is None or self._laid_to_rest(lease, attempt)
        except LauncherUnavailable:
            gone = False
        wait = 0.0 if gone else self._settings.queue_seconds
        self._store.release(lease, self._clock() + wait)

    def _write_order(self, job: Job, number: int) -> Order:
        directory = job_directory(self._settings.home, job.id)

        def order(token: str) -> Order:
            return Order(
                job_id=job.id,
                job_name=job.name,
                kind=job.kind,
                attempt=number,
                token=token,
                service_url=self._settings.service_url,
                spec={name: value for name, value in job.spec.items() if name not in ("kind", "name")},
                job_dir=directory,
                prepared_dir=self._settings.home / "prepared",
            )

        return write_order(order_path(directory, number), order)

    def _new_attempt(self, session: Session, job: Job, order: Order) -> Attempt:
        now = self._clock()
        attempt = Attempt(
            job_id=job.id,
            number=order.attempt,
            state="submitting",
            submission_id=f"manta-{job.id}-{order.attempt}",
            token_hash=hash_token(order.token),
            generation=0,
            failed_lookups=0,
            gone=False,
            created_at=now,
        )
        session.add(attempt)
        job.attempt = order.attempt
        move(session, job, JobState.PREPARING, Reason.STARTED, SUPERVISOR, now, f"attempt {order.attempt}")
        return attempt

    def _submit(self, lease: Lease, job: Job, attempt: Attempt) -> None:
        path = order_path(job_directory(self._settings.home, job.id), attempt.number)
        entrypoint = shlex.join([self._settings.python, "-m", KINDS[job.kind].driver, str(path)])
        try:
            self._launcher.submit(attempt.submission_id, entrypoint, self._settings.env)
        except LauncherUnavailable as error:
            self._decide(lease, None, error.detail)
            return
        now = self._clock()
        with self._store.step(lease) as (session, job):
            newest = _newest(session, job)
            if newest is not None and newest.state == "submitting":
                newest.state, newest.failed_lookups, newest.failing_since = "running", 0, None
                record(session, job.id, now, "attempt_started", SUPERVISOR, f"{newest.submission_id} was submitted")
            give_back(job, now + 1.0)
        self._store.changed(job.id, lifecycle=False)

    # -- a live job --------------------------------------------------------------------------------------------------------

    def _watch(self, lease: Lease, job: Job, attempt: Attempt) -> None:
        now = self._clock()
        stop = must_stop(
            job.state,
            now - job.moved_at,
            _ago(now, attempt.outcome_at),
            _ago(now, attempt.stopped_at),
            self._settings.grace,
        )
        try:
            if stop:
                self._launcher.stop(attempt.submission_id)
            status = self._launcher.status(attempt.submission_id)
        except LauncherUnavailable as error:
            self._decide(lease, None, error.detail)
            return
        log: list[str] = []
        if status.state in TERMINAL or status.state == "unknown":
            directory = job_directory(self._settings.home, job.id)
            aftermath.collect_reports(self._reports, directory, job.id, attempt.number)
            log = aftermath.log_tail(directory, attempt.number) or self._printed(attempt)
        self._decide(lease, status, status.message, log=log, stopped=stop)

    def _printed(self, attempt: Attempt) -> list[str]:
        """What a driver that died before it had a log told the launcher."""
        if attempt.outcome is not None:
            return []
        try:
            return aftermath.last_lines(self._launcher.logs(attempt.submission_id))
        except LauncherUnavailable:
            return []

    def _decide(
        self, lease: Lease, status: LaunchStatus | None, message: str, *, log: Sequence[str] = (), stopped: bool = False
    ) -> None:
        """Write down what the launcher said, and what follows from it. ``status`` None: it did not answer."""
        now = self._clock()
        with self._store.step(lease) as (session, job):
            attempt = _newest(session, job)
            if attempt is None:
                raise RuntimeError(f"job {job.id} has no attempt {job.attempt}")
            if status is None:
                attempt.failed_lookups += 1
                attempt.failing_since = attempt.failing_since if attempt.failing_since is not None else now
            else:
                attempt.failed_lookups, attempt.failing_since = 0, None
            if stopped:
                attempt.stopped_at = now
            seen = observe(job, attempt, status, now)
            decision = after_attempt(seen, self._settings.budgets)
            if decision.to is None:
                give_back(job, now + next_look(seen, now - job.moved_at, _ago(now, attempt.outcome_at)))
            else:
                changed = self._close(session, job, attempt, decision, message, list(log))
        if decision.to is not None:
            for each in changed:
                self._store.changed(each, lifecycle=True)

    def _close(
        self, session: Session, job: Job, attempt: Attempt, decision: Decision, message: str, log: list[str]
    ) -> list[str]:
        """The attempt is over: its row, its workers' rows, and the job's move; with a study end its trials. Returns the ids of
        the jobs that changed."""
        now = self._clock()
        assert decision.to is not None
        said = aftermath.headline(message)
        attempt.gone = decision.gone
        if attempt.state != "ended":
            attempt.state, attempt.outcome, attempt.ended_at = "ended", decision.outcome, now
            attempt.detail = said or None
            mine = (Worker.job_id == job.id, Worker.attempt == attempt.number, Worker.state == "started")
            session.execute(update(Worker).where(*mine).values(state="ended"))
        if decision.outcome == "lost":
            lost = f"attempt {attempt.number} was lost: {said or 'no last word'}"
            record(session, job.id, now, "attempt_lost", SUPERVISOR, lost)
        match decision.to:
            case JobState.QUEUED:
                job.losses += 1
                job.restarts += 1
            case JobState.FAILED:
                job.failure = attempt.failure or aftermath.failure(attempt.number, decision, job.losses + 1, message, log)
            case JobState.SUCCEEDED:
                job.result = attempt.result
        reason = job.reason if decision.reason is Reason.USER else decision.reason  # whoever asked for it
        move(session, job, decision.to, reason, SUPERVISOR, now, f"attempt {attempt.number} {decision.outcome}")
        ended = wishes.of_children(session, job.id, wishes.cancel, now) if decision.to in FINAL else []
        wake_queue(session)
        return [job.id, *ended]


def _newest(session: Session, job: Job) -> Attempt | None:
    return session.scalar(select(Attempt).where(Attempt.job_id == job.id, Attempt.number == job.attempt))


def _ago(now: float, then: float | None) -> float | None:
    return None if then is None else now - then


def _moved_on(job: Job) -> bool:
    """Whether its user took a job out of the queue while the cluster was talked to; it is due again at once if so."""
    if job.state is JobState.QUEUED:
        return False
    give_back(job, 0.0)
    return True

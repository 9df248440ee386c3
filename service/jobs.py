"""What a user can do with jobs. Each operation is one short transaction; an illegal one changes nothing and says why."""

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from data.errors import MantaError
from service import cursors, wishes
from service.models import IdempotencyKey, Job
from service.moves import USER, record
from service.policies import needs
from service.progress import phase_views
from service.resolve import earlier_studies, require_free_name
from service.spec import AnyJob, TrainJob, TuneJob
from service.states import FINAL, LIVE, IllegalTransition, JobState, Reason
from service.store import JobNotFound, Store, lock_job, wake_queue
from service.validation import check_plan
from service.views import JobView, Page
from workers.attempt import Desired

MAX_PAGE = 1000
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


class IdempotencyConflict(MantaError):
    """The key was used for a different job."""

    code = "idempotency_conflict"
    status = 409


class TooManyJobs(MantaError):
    """The service holds as many unfinished jobs as its settings allow."""

    code = "too_many_jobs"
    status = 429


@dataclass(frozen=True)
class Created:
    job: JobView
    replayed: bool
    """The idempotency key was known: this is the job that it made."""


class Jobs:
    """``home`` holds each job's storage (``jobs/<id>``); ``max_unfinished`` bounds jobs that have not ended."""

    def __init__(self, store: Store, home: Path, *, max_unfinished: int = 1000, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._home = home
        self._max_unfinished = max_unfinished
        self._clock = clock

    def create(self, spec: AnyJob, *, idempotency_key: str | None = None) -> Created:
        """A new queued job. With a known key and the same spec (as it was given, without defaults): the job that the key made.

        Raises ``SpecInvalid`` (this version cannot run it), ``IdempotencyConflict`` (same key, other spec), ``TooManyJobs``.
        """
        # What another version would fill in or refuse must not make another submit of a repeated one.
        given = json.loads(spec.model_dump_json(exclude_unset=True))
        fingerprint = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
        if idempotency_key is not None:
            with self._store.read() as session:
                known = _replay(session, idempotency_key, fingerprint)
            if known is not None:
                return Created(job_view(known), replayed=True)
        check_plan(spec)
        try:
            job, replayed = self._create(spec, idempotency_key, fingerprint)
        except IntegrityError:
            # Two submits with one key at the same moment: the other has committed it, so this one finds it now.
            if idempotency_key is None:
                raise
            job, replayed = self._create(spec, idempotency_key, fingerprint)
        if not replayed:
            self._store.changed(job.id, lifecycle=True)
        return Created(job_view(job), replayed)

    def _create(self, spec: AnyJob, key: str | None, fingerprint: str) -> tuple[Job, bool]:
        now = self._clock()
        with self._store.write() as session:
            if key is not None and (known := _replay(session, key, fingerprint)) is not None:
                return known, True
            counted = select(func.count()).select_from(Job).where(Job.state.not_in(FINAL), Job.parent.is_(None))
            unfinished = session.scalar(counted) or 0
            if unfinished >= self._max_unfinished:
                raise TooManyJobs(f"{unfinished} jobs have not ended and {self._max_unfinished} are allowed; try again later")
            if isinstance(spec, TuneJob):
                require_free_name(session, spec)
                spec = spec.model_copy(update={"warm_start": earlier_studies(session, spec)})
            job = new_job(spec, now)
            add_job(session, job, USER)
            if key is not None:
                session.add(IdempotencyKey(key=key, body_hash=fingerprint, job_id=job.id, created_at=now))
        return job, False

    def get(self, job_id: str) -> JobView:
        """Raises ``JobNotFound``."""
        with self._store.read() as session:
            return job_view(find_job(session, job_id))

    def list(
        self,
        *,
        state: JobState | Collection[JobState] | None = None,
        kind: str | None = None,
        name: str | None = None,
        parent: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[JobView]:
        """Newest first; of one state, or of any of several; ``parent``: the trials of that study. Raises ``InvalidCursor``."""
        limit = max(1, min(limit, MAX_PAGE))
        query = select(Job).order_by(Job.number.desc()).limit(limit + 1)
        if state is not None:
            query = query.where(Job.state.in_([state] if isinstance(state, JobState) else state))
        if kind is not None:
            query = query.where(Job.kind == kind)
        if name is not None:
            query = query.where(Job.name == name)
        if parent is not None:
            query = query.where(Job.parent == parent)
        if cursor is not None:
            query = query.where(Job.number < cursors.decode("jobs", cursor))
        with self._store.read() as session:
            rows = session.scalars(query).all()
        more = cursors.encode("jobs", rows[limit - 1].number) if len(rows) > limit else None
        return Page[JobView](items=[job_view(job) for job in rows[:limit]], next_cursor=more)

    def count_by_state(self) -> dict[JobState, int]:
        """Every state, also those without a job."""
        with self._store.read() as session:
            counted = session.execute(select(Job.state, func.count()).group_by(Job.state)).all()
        return dict.fromkeys(JobState, 0) | dict(counted)

    def cancel(self, job_id: str) -> JobView:
        """What has no attempt is cancelled at once, else the attempt is ended first. Cancelling twice is no error."""
        return self._wish(job_id, wishes.cancel, children=True)

    def pause(self, job_id: str) -> JobView:
        """Checkpoint and end the attempt; the job keeps its place in time, not its resources. Pausing twice is no error."""
        return self._wish(job_id, wishes.pause, children=True)

    def resume(self, job_id: str) -> JobView:
        """Queue a paused job; its next attempt goes on from the newest checkpoint."""
        return self._wish(job_id, wishes.resume)

    def retry(self, job_id: str) -> JobView:
        """Queue a failed or cancelled job again, from its newest checkpoint, with a fresh budget of attempts."""
        return self._wish(job_id, wishes.retry)

    def delete(self, job_id: str) -> None:
        """Remove an ended job: its rows, then its directory; of a study, those of its trials' jobs too.

        Raises ``JobNotFound`` and ``IllegalTransition``.
        """
        with self._store.write() as session:
            job = lock_job(session, job_id)
            children = select(Job).where(Job.parent == job_id).order_by(Job.number).with_for_update(key_share=True)
            gone = [job, *session.scalars(children)]
            for each in gone:
                if each.state not in FINAL:
                    raise IllegalTransition(f"job {each.id} is {each.state}; cancel it first, then delete it")
                if not wishes.nothing_runs(session, each):
                    raise IllegalTransition(
                        f"attempt {each.attempt} of job {each.id} may still run; once the cluster has ended it, delete it"
                    )
                session.delete(each)
        for each in gone:
            shutil.rmtree(self.directory(each.id), ignore_errors=True)
            self._store.changed(each.id, lifecycle=True)

    def directory(self, job_id: str) -> Path:
        """The job's storage: ``checkpoints/``, ``logs/``, ``attempts/N/``. May not exist yet."""
        return job_directory(self._home, job_id)

    def _wish(self, job_id: str, wish: wishes.Wish, *, children: bool = False) -> JobView:
        """``children``: the same is wanted of the jobs that are a study's trials."""
        now = self._clock()
        with self._store.write() as session:
            job = lock_job(session, job_id)
            wish(session, job, Reason.USER, now)
            changed = [job_id, *(wishes.of_children(session, job_id, wish, now) if children else ())]
            wake_queue(session)
        for each in changed:
            self._store.changed(each, lifecycle=True)
        return job_view(job)


def _replay(session: Session, key: str, fingerprint: str) -> Job | None:
    """The job that ``key`` made. Raises ``IdempotencyConflict`` when it was of another spec."""
    known = session.get(IdempotencyKey, key)
    if known is None:
        return None
    if known.body_hash != fingerprint:
        raise IdempotencyConflict(f"Idempotency-Key {key!r} was used for another job spec (job {known.job_id})")
    return find_job(session, known.job_id)


def new_job(spec: AnyJob, now: float, *, parent: str | None = None, trial: int | None = None) -> Job:
    """A queued job; ``parent`` and ``trial``: of a study's trial."""
    wants = needs(spec)
    return Job(
        id="".join(secrets.choice(_ALPHABET) for _ in range(10)),
        name=spec.name,
        kind=spec.kind,
        spec=spec.model_dump(mode="json"),
        parent=parent,
        trial=trial,
        state=JobState.QUEUED,
        desired=Desired.RUNNING,
        reason=Reason.SUBMITTED,
        cpus=wants.cpus,
        gpus=wants.gpus,
        total_steps=spec.total_steps if isinstance(spec, TrainJob) else None,
        created_at=now,
        queued_at=now,
        moved_at=now,
    )


def add_job(session: Session, job: Job, actor: str) -> None:
    """Store a new job, with the event that tells of it."""
    session.add(job)
    session.flush()
    record(session, job.id, job.created_at, "submitted", actor, f"{job.kind} job {job.name} was submitted")


def find_job(session: Session, job_id: str) -> Job:
    """The job without taking its row. Raises ``JobNotFound``."""
    job = session.scalar(select(Job).where(Job.id == job_id))
    if job is None:
        raise JobNotFound(f"there is no job {job_id}")
    return job


def job_directory(home: Path, job_id: str) -> Path:
    return home / "jobs" / job_id


def job_view(job: Job) -> JobView:
    progress = phase_views(job.kind, job.progress, live=job.state in LIVE)
    training = next((phase for phase in progress if phase.phase == "training"), None)
    return JobView.model_validate(
        {
            **{name: getattr(job, name) for name in _COLUMNS},
            "progress": progress,
            "step": training.done if training else None,
            "total_steps": training.total if training else job.total_steps,
        }
    )


_COLUMNS = frozenset(JobView.model_fields) - {"progress", "step", "total_steps"}

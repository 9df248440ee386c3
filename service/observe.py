"""What the supervisor sees of a job: in the queue, and while an attempt at it lives."""

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from service.launcher import Capacity, LaunchStatus
from service.models import Attempt, Job
from service.policies import Claim, Needs, Observed, may_start
from service.states import LIVE, JobState
from workers.spec import ElasticSpec


def waits_for(session: Session, job: Job, capacity: Capacity) -> str | None:
    columns = select(Job.name, Job.cpus, Job.gpus).order_by(Job.queued_at, Job.number)
    live = [Claim(*row) for row in session.execute(columns.where(Job.state.in_(LIVE), Job.id != job.id))]
    earlier = or_(Job.queued_at < job.queued_at, and_(Job.queued_at == job.queued_at, Job.number < job.number))
    able = and_(Job.cpus <= capacity.cpus, Job.gpus <= capacity.gpus)
    # The first that could run is all that matters: a long queue must not be read once for each job in it.
    first = session.execute(columns.where(Job.state == JobState.QUEUED, earlier, able).limit(1))
    ahead = [Claim(*row) for row in first]
    return may_start(Needs(job.cpus, job.gpus), capacity, live, ahead)


def observe(job: Job, attempt: Attempt, status: LaunchStatus | None, now: float) -> Observed:
    heard = attempt.reported_at if attempt.reported_at is not None else attempt.created_at
    never_submitted = attempt.state == "submitting" and status is not None
    return Observed(
        state=job.state,
        # What an attempt that is closed already became ("lost") is no last word.
        outcome=attempt.outcome if attempt.state != "ended" else None,
        launch=status.state if status else None,
        silent_seconds=float("inf") if never_submitted else now - heard,
        failed_lookups=attempt.failed_lookups,
        failing_seconds=now - attempt.failing_since if attempt.failing_since is not None else 0.0,
        losses=job.losses,
        max_attempts=max_attempts(job),
    )


def max_attempts(job: Job) -> int:
    """The job's budget of attempts; kinds without an ``elastic`` block have the default."""
    training = job.spec.get("base", {}) if job.kind == "tune" else job.spec
    return ElasticSpec.model_validate(training.get("elastic", {})).max_attempts

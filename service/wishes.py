"""What may be wanted of a job whose row the caller holds, by its user or by its study."""

from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.models import Attempt, Job
from service.moves import STUDY, USER, move
from service.states import FINAL, LIVE, IllegalTransition, JobState, Reason
from workers.attempt import Desired

Wish = Callable[[Session, Job, Reason, float], None]
"""(session, job, whose wish, Unix seconds). Raises ``IllegalTransition``; wishing twice is no error."""


def cancel(session: Session, job: Job, reason: Reason, now: float) -> None:
    """What has no attempt is cancelled at once, else the attempt is ended first."""
    if job.state in (JobState.CANCELLING, JobState.CANCELLED):
        return
    if job.state in FINAL:
        raise IllegalTransition(f"job {job.id} has {job.state}; there is nothing to cancel")
    to = JobState.CANCELLED if job.state not in LIVE and nothing_runs(session, job) else JobState.CANCELLING
    job.desired = Desired.CANCELLED
    move(session, job, to, reason, _actor(reason), now)


def pause(session: Session, job: Job, reason: Reason, now: float) -> None:
    """Checkpoint and end the attempt."""
    if job.state in (JobState.PAUSING, JobState.PAUSED):
        return
    if job.state in FINAL or job.state is JobState.CANCELLING:
        raise IllegalTransition(f"job {job.id} is {job.state}; only an unfinished job can be paused")
    job.desired = Desired.PAUSED
    move(session, job, JobState.PAUSING if job.state in LIVE else JobState.PAUSED, reason, _actor(reason), now)


def resume(session: Session, job: Job, reason: Reason, now: float) -> None:
    """Queue a paused job."""
    if job.state is not JobState.PAUSED:
        raise IllegalTransition(f"job {job.id} is {job.state}; only a paused job can be resumed")
    job.desired = Desired.RUNNING
    move(session, job, JobState.QUEUED, reason, _actor(reason), now)


def retry(session: Session, job: Job, reason: Reason, now: float) -> None:
    """Queue a failed or cancelled job with a fresh budget of attempts."""
    if job.state not in (JobState.FAILED, JobState.CANCELLED):
        raise IllegalTransition(f"job {job.id} is {job.state}; only a failed or cancelled job can be retried")
    job.desired, job.losses, job.failure = Desired.RUNNING, 0, None
    move(session, job, JobState.QUEUED, reason, _actor(reason), now)


def of_children(session: Session, study_id: str, wish: Wish, now: float) -> list[str]:
    """The same of every trial of a study that is a job and goes on. Returns the ids of those jobs."""
    going = Job.state.not_in((*FINAL, JobState.CANCELLING))
    children = select(Job).where(Job.parent == study_id, going).order_by(Job.number).with_for_update(key_share=True)
    changed = []
    for child in session.scalars(children).all():
        wish(session, child, Reason.STUDY, now)
        changed.append(child.id)
    return changed


def nothing_runs(session: Session, job: Job) -> bool:
    """Whether the cluster has said that the newest attempt has ended."""
    at = select(Attempt.gone).where(Attempt.job_id == job.id, Attempt.number == job.attempt)
    return session.scalar(at) is not False


def _actor(reason: Reason) -> str:
    return STUDY if reason is Reason.STUDY else USER

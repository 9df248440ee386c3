"""Carries out a move of the table: the job's columns, and the event that tells of it, in the caller's transaction."""

from typing import Any

from sqlalchemy.orm import Session

from service.models import Event, Job
from service.states import FINAL, LIVE, JobState, Reason, check_move

USER = "user"
STUDY = "study"
SUPERVISOR = "supervisor"


def attempt_actor(number: int) -> str:
    return f"attempt-{number}"


def record(
    session: Session, job_id: str, now: float, type: str, actor: str, message: str, data: dict[str, Any] | None = None
) -> None:
    session.add(Event(job_id=job_id, at=now, type=type, actor=actor, message=message, data=data or {}))


def move(session: Session, job: Job, to: JobState, reason: Reason, actor: str, now: float, detail: str = "") -> None:
    """Change the state of a job whose row the caller holds. Raises ``IllegalTransition``."""
    old = job.state
    check_move(old, to, reason)
    job.state, job.reason, job.moved_at, job.look_at = to, reason, now, 0.0
    job.why_pending = None
    if to is JobState.QUEUED:
        job.queued_at, job.ended_at = now, None
    if to is JobState.PREPARING and job.started_at is None:
        job.started_at = now
    if to in FINAL:
        job.ended_at = now
    if to not in LIVE:
        job.lease_owner = job.lease_token = job.lease_expires_at = None
    message = f"{old} -> {to}" + (f": {detail}" if detail else "")
    record(session, job.id, now, "state", actor, message, {"from": old.value, "to": to.value, "reason": reason.value})

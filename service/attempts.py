"""Who speaks for a job: its newest attempt, known by its token, for as long as it has not ended."""

import hashlib
import hmac

from sqlalchemy import select
from sqlalchemy.orm import Session

from data.errors import MantaError
from service.models import Attempt, Job


class StaleAttempt(MantaError):
    """A newer attempt exists, or this one has ended: whoever reports must stop."""

    code = "stale_attempt"
    status = 409


class InvalidToken(MantaError):
    """The bearer token is not the attempt's."""

    code = "invalid_token"
    status = 401


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def newest_attempt(session: Session, job_id: str, number: int, token: str | None, *, hold: bool = True) -> tuple[Job, Attempt]:
    """The job and its attempt ``number``, which must be the newest and live.

    Args:
        token: the attempt's own; None: who asks needs none.
        hold: the job's row until the transaction ends.

    Raises:
        StaleAttempt, InvalidToken.
    """
    query = select(Job).where(Job.id == job_id)
    job = session.scalar(query.with_for_update(key_share=True) if hold else query)
    attempt = session.scalar(select(Attempt).where(Attempt.job_id == job_id, Attempt.number == number))
    if job is None or attempt is None:
        raise StaleAttempt(f"job {job_id} has no attempt {number}; it may have been deleted")
    if token is not None and not hmac.compare_digest(hash_token(token), attempt.token_hash):
        raise InvalidToken(f"the token is not that of attempt {number}")
    if job.attempt != number:
        raise StaleAttempt(f"attempt {number} is over; attempt {job.attempt} is the job's newest")
    if attempt.state == "ended":
        raise StaleAttempt(f"attempt {number} has ended")
    return job, attempt

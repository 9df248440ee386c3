"""The states of a job and the moves between them. Anything that is not in the table raises."""

from enum import StrEnum

from data.errors import MantaError


class JobState(StrEnum):
    QUEUED = "queued"
    PREPARING = "preparing"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
LIVE = frozenset({JobState.PREPARING, JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING})
"""An attempt exists and may have processes."""
SUPERVISED = LIVE | {JobState.QUEUED}
"""The supervisor has something to do."""


class Reason(StrEnum):
    """Why a job is in its state: stable codes that the API shows."""

    SUBMITTED = "submitted"
    USER = "user"
    STUDY = "study"
    """The study whose trial it is asked for it, or was itself asked."""
    STARTED = "started"
    """An attempt was started."""
    TRAINING = "training"
    """The workers train."""
    COMPLETED = "completed"
    WORKER_FAILED = "worker_failed"
    """The attempt itself said that it failed; another would fail the same way."""
    ATTEMPT_LOST = "attempt_lost"
    """The driver or the cluster went away; a new attempt follows."""
    ATTEMPTS_SPENT = "attempts_spent"
    """The last attempt of the budget was lost."""


_S, _R = JobState, Reason
_FAILED = frozenset({_R.WORKER_FAILED, _R.ATTEMPTS_SPENT})
_USER = frozenset({_R.USER})
_ASKED = _USER | {_R.STUDY}
_LOST = frozenset({_R.ATTEMPT_LOST})
_DONE = frozenset({_R.COMPLETED})

MOVES: dict[tuple[JobState, JobState], frozenset[Reason]] = {
    (_S.QUEUED, _S.PREPARING): frozenset({_R.STARTED}),
    (_S.QUEUED, _S.PAUSED): _ASKED,
    (_S.QUEUED, _S.CANCELLED): _ASKED,
    # Nothing is known to run, but the cluster was away when the last attempt was lost: it is asked first.
    (_S.QUEUED, _S.CANCELLING): _ASKED,
    (_S.PAUSED, _S.CANCELLING): _ASKED,
    (_S.PREPARING, _S.RUNNING): frozenset({_R.TRAINING}),
    (_S.PREPARING, _S.QUEUED): _LOST,
    (_S.PREPARING, _S.PAUSING): _ASKED,
    (_S.PREPARING, _S.CANCELLING): _ASKED,
    (_S.PREPARING, _S.SUCCEEDED): _DONE,
    (_S.PREPARING, _S.FAILED): _FAILED,
    (_S.RUNNING, _S.QUEUED): _LOST,
    (_S.RUNNING, _S.PAUSING): _ASKED,
    (_S.RUNNING, _S.CANCELLING): _ASKED,
    (_S.RUNNING, _S.SUCCEEDED): _DONE,
    (_S.RUNNING, _S.FAILED): _FAILED,
    # A pausing job whose attempt is lost is where its user wanted it: at its last checkpoint, with nothing running.
    (_S.PAUSING, _S.PAUSED): _ASKED | _LOST,
    (_S.PAUSING, _S.CANCELLING): _ASKED,
    (_S.PAUSING, _S.SUCCEEDED): _DONE,
    (_S.PAUSING, _S.FAILED): frozenset({_R.WORKER_FAILED}),
    (_S.PAUSED, _S.QUEUED): _ASKED,
    (_S.PAUSED, _S.CANCELLED): _ASKED,
    # An accepted cancel ends as cancelled, even when the attempt was quicker.
    (_S.CANCELLING, _S.CANCELLED): _ASKED,
    # A study may be given more budget.
    (_S.SUCCEEDED, _S.QUEUED): _USER,
    (_S.FAILED, _S.QUEUED): _USER,
    (_S.CANCELLED, _S.QUEUED): _ASKED,
}
"""(from, to) -> the reasons that may be given for it."""


class IllegalTransition(MantaError):
    """The job's state does not allow what was asked."""

    code = "illegal_transition"
    status = 409


def check_move(old: JobState, new: JobState, reason: Reason) -> None:
    """Raise ``IllegalTransition`` unless the table has the move with that reason."""
    if reason not in MOVES.get((old, new), frozenset()):
        raise IllegalTransition(f"a {old} job cannot become {new} ({reason})")

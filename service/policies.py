"""The supervisor's decisions: pure, tested as tables. (observed state) -> (decision)."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.launcher import TERMINAL, Capacity, LaunchState
from service.spec import AnyJob, DataJob, TuneJob
from service.states import JobState, Reason


@dataclass(frozen=True)
class Needs:
    """Logical CPUs and GPUs that a job's workers take."""

    cpus: float
    gpus: float


def needs(spec: AnyJob) -> Needs:
    if isinstance(spec, DataJob):
        return Needs(1.0, 0.0)
    if isinstance(spec, TuneJob) and spec.trials_are_jobs:  # each asks for itself
        return Needs(0.0, 0.0)
    base, at_once = (spec.base, spec.concurrent_trials) if isinstance(spec, TuneJob) else (spec, 1)
    workers = base.world_size * at_once
    return Needs(float(workers * base.gpu_config.cpus_per_worker), float(workers if base.gpu_config.gpus_per_node else 0))


@dataclass(frozen=True)
class Claim:
    """A job beside the one that wants to start."""

    name: str
    cpus: float
    gpus: float


def may_start(wants: Needs, capacity: Capacity, live: Sequence[Claim], ahead: Sequence[Claim]) -> str | None:
    """None: start. Else what the job waits for, in words.

    ``live`` are the jobs that have an attempt, ``ahead`` those that were queued earlier. First come, first served: a job does
    not overtake one that waits for the same machine, unless that one could not run even on the empty cluster.
    """
    if not _fits(wants, capacity.cpus, capacity.gpus):
        return f"needs {_words(wants.cpus, wants.gpus)}; the whole cluster has {_words(capacity.cpus, capacity.gpus)}"
    for job in ahead:
        if _fits(Needs(job.cpus, job.gpus), capacity.cpus, capacity.gpus):
            return f"waits for its turn behind {job.name}"
    free = Needs(capacity.cpus - sum(job.cpus for job in live), capacity.gpus - sum(job.gpus for job in live))
    if _fits(wants, free.cpus, free.gpus):
        return None
    holding = [job.name for job in live if job.cpus or job.gpus]  # a study whose trials are jobs holds nothing
    names = ", ".join(holding[:3]) + (" and others" if len(holding) > 3 else "")
    return (
        f"needs {_words(wants.cpus, wants.gpus)}; {_words(max(free.cpus, 0), max(free.gpus, 0))} of "
        f"{_words(capacity.cpus, capacity.gpus)} free while {names} run{'s' if len(holding) == 1 else ''}"
    )


def _fits(wants: Needs, cpus: float, gpus: float) -> bool:
    return wants.cpus <= cpus and wants.gpus <= gpus


def _words(cpus: float, gpus: float) -> str:
    text = f"{cpus:g} CPU{'' if cpus == 1 else 's'}"
    return f"{text} and {gpus:g} GPU{'' if gpus == 1 else 's'}" if gpus else text


@dataclass(frozen=True)
class Observed:
    """One look at a live job's newest attempt."""

    state: JobState
    outcome: str | None
    """The attempt's last word, from its driver; None while it has not said one."""
    launch: LaunchState | None
    """What the launcher says; None: it did not answer."""
    silent_seconds: float
    """Since the last report (or since the attempt was made)."""
    failed_lookups: int
    """Look-ups in a row, this one included, that the launcher did not answer."""
    failing_seconds: float
    """Since the first of them."""
    losses: int
    """Attempts that were lost before this one since the budget was fresh."""
    max_attempts: int


@dataclass(frozen=True)
class Budgets:
    """How much goes wrong before it counts."""

    lookup_failures: int = 10
    lookup_seconds: float = 60.0
    unknown_seconds: float = 10.0
    """An attempt that the cluster does not know is lost once it has also been silent for so long."""


@dataclass(frozen=True)
class Decision:
    """``to`` None: wait. ``outcome`` is what became of the attempt. ``gone``: the launcher says that nothing of it runs."""

    to: JobState | None
    reason: Reason = Reason.STARTED
    outcome: str = ""
    gone: bool = True


WAIT = Decision(None)


def after_attempt(seen: Observed, budgets: Budgets) -> Decision:
    """What becomes of a live job, given the newest attempt's last word and the launcher's.

    Reports come first, the launcher is the second opinion; but a job leaves its live states only when the launcher says
    that nothing of the attempt runs, or when it could not be asked for longer than the budgets allow.
    """
    if not _is_over(seen, budgets):
        # A cancelled job waits for the cluster however long that takes: "cancelled" promises that nothing runs.
        spent = seen.failed_lookups >= budgets.lookup_failures and seen.failing_seconds >= budgets.lookup_seconds
        silent = seen.silent_seconds >= budgets.lookup_seconds
        if seen.launch is None and spent and silent and seen.state is not JobState.CANCELLING:
            return _lost(seen, gone=False)
        return WAIT
    if seen.state is JobState.CANCELLING:
        return Decision(JobState.CANCELLED, Reason.USER, "cancelled")
    match seen.outcome:
        case "succeeded":
            return Decision(JobState.SUCCEEDED, Reason.COMPLETED, "succeeded")
        case "failed":
            return Decision(JobState.FAILED, Reason.WORKER_FAILED, "failed")
        case "paused" if seen.state is JobState.PAUSING:
            return Decision(JobState.PAUSED, Reason.USER, "paused")
        case _:
            # No last word, or one that nobody asked for (a driver stopped by hand says "cancelled").
            return _lost(seen, gone=True)


def _is_over(seen: Observed, budgets: Budgets) -> bool:
    if seen.launch == "unknown":
        asked_to_end = seen.outcome is not None or seen.state is JobState.CANCELLING
        return asked_to_end or seen.silent_seconds >= budgets.unknown_seconds
    return seen.launch in TERMINAL


def _lost(seen: Observed, *, gone: bool) -> Decision:
    if seen.state is JobState.PAUSING:
        return Decision(JobState.PAUSED, Reason.ATTEMPT_LOST, "lost", gone)
    if seen.losses + 1 < seen.max_attempts:
        return Decision(JobState.QUEUED, Reason.ATTEMPT_LOST, "lost", gone)
    return Decision(JobState.FAILED, Reason.ATTEMPTS_SPENT, "lost", gone)


def next_look(seen: Observed, since_moved: float, since_outcome: float | None) -> float:
    """Seconds until the launcher is asked again.

    A look-up costs a request to the cluster's head, which shares its cores with training: reports tell of nearly
    everything, so the launcher is asked seldom, but quickly where the answer ends the job.
    """
    if seen.launch is None:
        return min(0.5 * 2.0 ** min(seen.failed_lookups, 5), 10.0)
    if since_outcome is not None:
        return 0.1 if since_outcome < 5 else 1.0
    if seen.state is JobState.CANCELLING:
        return 0.1 if since_moved < 10 else 1.0
    if seen.silent_seconds > 3:
        return 2.0
    return 5.0


@dataclass(frozen=True)
class Grace:
    """Seconds that an attempt has to end by itself."""

    pause: float = 120.0
    """From the pause to its last checkpoint."""
    exit: float = 20.0
    """From its last word to the end of its processes."""
    again: float = 10.0
    """From one stop to the next, while it still runs."""


def must_stop(
    state: JobState, since_moved: float, since_outcome: float | None, since_stopped: float | None, grace: Grace
) -> bool:
    """Whether to ask the launcher now to end the attempt. Times are seconds ago, None: it has not happened."""
    if since_stopped is not None and since_stopped < grace.again:
        return False
    if since_outcome is not None:
        return since_outcome >= grace.exit
    return state is JobState.CANCELLING or (state is JobState.PAUSING and since_moved >= grace.pause)

"""The supervisor's decisions, as tables."""

from dataclasses import replace
from typing import Any

import pytest

from service.launcher import Capacity
from service.policies import (
    WAIT,
    Budgets,
    Claim,
    Decision,
    Grace,
    Needs,
    Observed,
    after_attempt,
    may_start,
    must_stop,
    needs,
    next_look,
)
from service.spec import DataJob, TrainJob, TuneJob
from service.states import JobState, Reason
from workers.spec import GpuConfig, ParallelSpec

S, R = JobState, Reason
SEEN = Observed(
    state=S.RUNNING,
    outcome=None,
    launch="running",
    silent_seconds=0.5,
    failed_lookups=0,
    failing_seconds=0.0,
    losses=0,
    max_attempts=3,
)
BUDGETS = Budgets(lookup_failures=10, lookup_seconds=60.0, unknown_seconds=10.0)
AGAIN = Decision(S.QUEUED, R.ATTEMPT_LOST, "lost")
SPENT = Decision(S.FAILED, R.ATTEMPTS_SPENT, "lost")
CANCELLED = Decision(S.CANCELLED, R.USER, "cancelled")


@pytest.mark.parametrize(
    ("seen", "decision"),
    [
        # Nothing has happened, whatever the last word says, while the launcher still sees it run.
        ({}, WAIT),
        ({"launch": "pending"}, WAIT),
        ({"outcome": "succeeded"}, WAIT),
        ({"outcome": "failed"}, WAIT),
        ({"state": S.CANCELLING}, WAIT),
        ({"state": S.PAUSING, "outcome": "paused"}, WAIT),
        # The last word counts, not the exit code.
        ({"launch": "succeeded", "outcome": "succeeded"}, Decision(S.SUCCEEDED, R.COMPLETED, "succeeded")),
        ({"launch": "failed", "outcome": "succeeded"}, Decision(S.SUCCEEDED, R.COMPLETED, "succeeded")),
        ({"launch": "unknown", "outcome": "succeeded"}, Decision(S.SUCCEEDED, R.COMPLETED, "succeeded")),
        ({"launch": "succeeded", "outcome": "failed"}, Decision(S.FAILED, R.WORKER_FAILED, "failed")),
        ({"launch": "failed", "outcome": "failed", "losses": 0}, Decision(S.FAILED, R.WORKER_FAILED, "failed")),
        # Without one the attempt is lost, however it ended.
        ({"launch": "succeeded"}, AGAIN),
        ({"launch": "failed"}, AGAIN),
        ({"launch": "stopped"}, AGAIN),
        ({"launch": "stopped", "outcome": "cancelled"}, AGAIN),
        ({"launch": "failed", "losses": 1}, AGAIN),
        ({"launch": "failed", "losses": 2}, SPENT),
        ({"launch": "failed", "max_attempts": 1}, SPENT),
        ({"state": S.PREPARING, "launch": "failed"}, AGAIN),
        # A cluster that does not know it may only be slow: as long as reports come, it lives.
        ({"launch": "unknown", "silent_seconds": 9.0}, WAIT),
        ({"launch": "unknown", "silent_seconds": 10.0}, AGAIN),
        # A failed look-up is not a failed job: both budgets must be spent, and the attempt silent.
        ({"launch": None, "failed_lookups": 1, "failing_seconds": 0.0, "silent_seconds": 100}, WAIT),
        ({"launch": None, "failed_lookups": 99, "failing_seconds": 59.0, "silent_seconds": 100}, WAIT),
        ({"launch": None, "failed_lookups": 9, "failing_seconds": 600.0, "silent_seconds": 600}, WAIT),
        ({"launch": None, "failed_lookups": 99, "failing_seconds": 600.0, "silent_seconds": 1.0}, WAIT),
        ({"launch": None, "failed_lookups": 10, "failing_seconds": 60.0, "silent_seconds": 60}, replace(AGAIN, gone=False)),
        (
            {"launch": None, "failed_lookups": 10, "failing_seconds": 60.0, "silent_seconds": 60, "losses": 2},
            replace(SPENT, gone=False),
        ),
        # Cancelled means that nothing runs: only the cluster itself can say so.
        ({"state": S.CANCELLING, "launch": None, "failed_lookups": 99, "failing_seconds": 9e9, "silent_seconds": 9e9}, WAIT),
        ({"state": S.CANCELLING, "launch": "stopped"}, CANCELLED),
        ({"state": S.CANCELLING, "launch": "unknown"}, CANCELLED),
        ({"state": S.CANCELLING, "launch": "succeeded", "outcome": "succeeded"}, CANCELLED),
        ({"state": S.CANCELLING, "launch": "failed", "outcome": "failed"}, CANCELLED),
        # Pausing.
        ({"state": S.PAUSING, "launch": "succeeded", "outcome": "paused"}, Decision(S.PAUSED, R.USER, "paused")),
        (
            {"state": S.PAUSING, "launch": "succeeded", "outcome": "succeeded"},
            Decision(S.SUCCEEDED, R.COMPLETED, "succeeded"),
        ),
        ({"state": S.PAUSING, "launch": "failed", "outcome": "failed"}, Decision(S.FAILED, R.WORKER_FAILED, "failed")),
        ({"state": S.PAUSING, "launch": "stopped"}, Decision(S.PAUSED, R.ATTEMPT_LOST, "lost")),
        ({"state": S.PAUSING, "launch": "stopped", "losses": 2}, Decision(S.PAUSED, R.ATTEMPT_LOST, "lost")),
    ],
)
def test_what_becomes_of_a_job_when_its_attempt(seen: dict[str, object], decision: Decision) -> None:
    assert after_attempt(replace(SEEN, **seen), BUDGETS) == decision


def study(**fields: Any) -> TuneJob:
    rate = {"type": "float", "low": 1e-4, "high": 1e-2}
    return TuneJob.model_validate({"name": "a", "space": {"training.learning_rate": rate}, **fields})


FOUR = Capacity(4, 0)
ONE_RUNS = [Claim("first", 3, 0)]


@pytest.mark.parametrize(
    ("wants", "live", "ahead", "waits_for"),
    [
        (Needs(2, 0), [], [], None),
        (Needs(4, 0), [], [], None),
        (Needs(1, 0), ONE_RUNS, [], None),
        (Needs(2, 0), ONE_RUNS, [], "needs 2 CPUs; 1 CPU of 4 CPUs free while first runs"),
        (
            Needs(2, 0),
            [Claim("first", 2, 0), Claim("second", 2, 0)],
            [],
            "needs 2 CPUs; 0 CPUs of 4 CPUs free while first, second run",
        ),
        (
            Needs(2, 0),
            [Claim("study", 0, 0), Claim("first", 3, 0)],
            [],
            "needs 2 CPUs; 1 CPU of 4 CPUs free while first runs",
        ),
        (Needs(8, 0), [], [], "needs 8 CPUs; the whole cluster has 4 CPUs"),
        (Needs(1, 2), [], [], "needs 1 CPU and 2 GPUs; the whole cluster has 4 CPUs"),
        # First come, first served, but nobody waits behind what can never run.
        (Needs(1, 0), ONE_RUNS, [Claim("earlier", 2, 0)], "waits for its turn behind earlier"),
        (Needs(1, 0), ONE_RUNS, [Claim("giant", 64, 0)], None),
    ],
)
def test_a_job_starts_or_says_what_it_waits_for(
    wants: Needs, live: list[Claim], ahead: list[Claim], waits_for: str | None
) -> None:
    assert may_start(wants, FOUR, live, ahead) == waits_for


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (TrainJob(name="a"), Needs(1, 0)),
        (TrainJob(name="a", gpu_config=GpuConfig(nodes=2, cpus_per_worker=3)), Needs(6, 0)),
        (TrainJob(name="a", gpu_config=GpuConfig(nodes=2, gpus_per_node=8)), Needs(16, 16)),
        (TrainJob(name="a", parallel_strategy=ParallelSpec(data_parallel=3)), Needs(3, 0)),
        (DataJob(name="a"), Needs(1, 0)),
        (study(concurrent_trials=3), Needs(3, 0)),
        (study(concurrent_trials=3, trials="jobs"), Needs(0, 0)),
        (study(base={"gpu_config": {"nodes": 2}}), Needs(0, 0)),
    ],
)
def test_a_job_needs_what_its_workers_take(spec: TrainJob | DataJob | TuneJob, expected: Needs) -> None:
    assert needs(spec) == expected


GRACE = Grace(pause=120.0, exit=20.0, again=10.0)


@pytest.mark.parametrize(
    ("state", "since_moved", "since_outcome", "since_stopped", "stops"),
    [
        (S.RUNNING, 1e6, None, None, False),
        (S.CANCELLING, 0.0, None, None, True),
        (S.CANCELLING, 5.0, None, 5.0, False),
        (S.CANCELLING, 15.0, None, 10.0, True),
        (S.CANCELLING, 5.0, 1.0, None, False),
        (S.PAUSING, 119.0, None, None, False),
        (S.PAUSING, 120.0, None, None, True),
        (S.RUNNING, 60.0, 19.0, None, False),
        (S.RUNNING, 60.0, 20.0, None, True),
    ],
)
def test_an_attempt_has_some_grace_to_end_by_itself(
    state: S, since_moved: float, since_outcome: float | None, since_stopped: float | None, stops: bool
) -> None:
    assert must_stop(state, since_moved, since_outcome, since_stopped, GRACE) is stops


def test_look_ups_are_rare_while_reports_come_and_quick_when_the_end_is_near() -> None:
    training = next_look(SEEN, 100.0, None)
    ending = next_look(replace(SEEN, outcome="succeeded"), 100.0, 0.2)
    cancelling = next_look(replace(SEEN, state=S.CANCELLING), 0.2, None)
    assert training == 5.0
    assert ending == cancelling == 0.1


def test_look_ups_that_fail_become_rarer() -> None:
    waits = [next_look(replace(SEEN, launch=None, failed_lookups=n), 100.0, None) for n in range(1, 9)]
    assert waits == sorted(waits)
    assert waits[-1] == 10.0

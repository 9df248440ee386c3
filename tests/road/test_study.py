"""A study over REST on a real cluster, and what it survives."""

import re
import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from api.cluster import LocalCluster
from service.states import JobState
from service.views import JobView
from tests.road.conftest import House, until

pytestmark = pytest.mark.cluster

Spec = Callable[..., dict[str, Any]]


@pytest.fixture
def study(tiny: Spec) -> Spec:
    def make(name: str, **fields: Any) -> dict[str, Any]:
        base = tiny(
            name,
            training={"steps": 30, "eval_interval": 10},
            parallel_strategy={"data_parallel": 1},
            checkpoint={"interval": 5},
        )
        return {
            "kind": "tune",
            "name": base.pop("name"),
            "base": base,
            "space": {"training.learning_rate": {"type": "float", "low": 1e-4, "high": 3e-2, "log": True}},
            "sampler": "tpe",
            "scheduler": {"type": "asha", "grace_steps": 10, "reduction_factor": 2},
            "budget": {"trials": 5},
            **fields,
        }

    return make


def decided(house: House, job: JobView) -> list[tuple[Any, ...]]:
    """What a study decided and found, trial by trial."""
    with house.client() as client:
        trials = client.trials(job.id).items
    return [
        (each.number, each.point, each.state, each.values, each.curve, each.reason, each.parent, each.lineage)
        for each in trials
    ]


def test_a_study_whose_driver_and_service_are_killed_decides_as_one_that_was_not(
    house: House, study: Spec, local_cluster: LocalCluster
) -> None:
    with house.client() as client:
        whole = client.submit(study("whole"))
    ended = house.ended(whole.id)
    assert ended.state is JobState.SUCCEEDED, ended.failure
    assert ended.result is not None
    assert sum(ended.result["trials"].values()) == 5

    with house.client() as client:
        job = client.submit(study("killed"))
        until(lambda: trials_done(client.get(job.id)) >= 2, "the second trial to end")
    drivers = drivers_of(house, job)
    house.kill()
    for driver in drivers:
        driver.send_signal(signal.SIGKILL)
    house.start()
    again = house.ended(job.id)
    assert again.state is JobState.SUCCEEDED, again.failure
    assert again.attempt == 2
    assert decided(house, again) == decided(house, ended)


POPULATION = {
    "sampler": "auto",
    "scheduler": {"type": "pbt", "population": 3, "interval": 10, "resample_probability": 0.0},
    "points": [{"training.learning_rate": 1e-4}],
    "budget": {"trials": 9},
}


def test_a_population_whose_driver_is_killed_loses_no_trial_and_runs_none_twice(house: House, study: Spec) -> None:
    with house.client() as client:
        whole = client.submit(study("population", **POPULATION))
    ended = house.ended(whole.id)
    assert ended.state is JobState.SUCCEEDED, ended.failure

    with house.client() as client:
        job = client.submit(study("population-killed", **POPULATION))
        until(lambda: any(trial.state == "pruned" for trial in client.trials(job.id).items), "the first exploit")
        for driver in drivers_of(house, job):
            driver.send_signal(signal.SIGKILL)
        again = house.ended(job.id)
        trials = client.trials(job.id).items
    assert again.state is JobState.SUCCEEDED, again.failure
    assert again.attempt == 2
    assert decided(house, again) == decided(house, ended)

    assert again.result is not None
    assert again.result["trials"] == {"complete": 3, "pruned": 2}, "at steps 10 and 20 one of three takes over"
    assert again.result["steps"] == 3 * 30
    for child in trials[3:]:
        assert child.parent is not None
        parent = trials[child.parent]
        (replaced,) = (each for each in trials if each.reason == f"exploited trial {parent.number} at step {child.at_step}")
        assert parent.curve[child.at_step] < replaced.curve[child.at_step]
        assert child.lineage == [*parent.lineage, (child.at_step, child.point)]
    (first,) = (each.number for each in trials if each.reason and each.reason.endswith("step 10"))
    begun, loaded = of_the_log(house, again, attempt=2)
    assert first not in begun, "what has ended is not begun again"
    assert loaded.keys() == begun, "what had trained goes on from where it was saved"
    assert min(loaded.values()) >= 10


def of_the_log(house: House, job: JobView, attempt: int) -> tuple[set[int], dict[int, int]]:
    """(trials that the warm workers of an attempt were given, trial -> step of the first checkpoint that it was loaded from)"""
    logs = (house.home / "jobs" / job.id / "logs" / f"attempt-{attempt}").glob("rank-*")
    text = "".join(path.read_text() for path in logs)
    loaded = re.findall(r"loaded the checkpoint of step (\d+) from \S+/trials/(\d+)/", text)
    begun = {int(number) for number in re.findall(r"trial (\d+) begins", text)}
    return begun, {int(trial): int(step) for step, trial in reversed(loaded)}


def test_trials_that_are_jobs_outlive_the_driver_of_their_study_and_none_is_run_twice(house: House, study: Spec) -> None:
    given = study("wide", trials="auto", scheduler={"type": "none"}, budget={"trials": 3})
    given["base"]["parallel_strategy"] = {"data_parallel": 2}
    with house.client() as client:
        job = client.submit(given)
        until(lambda: trials_done(client.get(job.id)) >= 1 and len(client.list(parent=job.id).items) == 2, "the second trial")
    child = children(house, job)[1]
    house.reaches(child.id, 5)
    for driver in drivers_of(house, job):
        driver.send_signal(signal.SIGKILL)
    ended = house.ended(job.id)
    assert ended.state is JobState.SUCCEEDED, ended.failure
    assert ended.attempt == 2
    with house.client() as client:
        trials = client.trials(job.id).items
    assert [(each.number, each.state) for each in trials] == [(number, "complete") for number in range(3)]
    jobs = children(house, job)
    assert [(each.trial, each.state, each.attempt) for each in jobs] == [(n, JobState.SUCCEEDED, 1) for n in range(3)]
    for trial, each in zip(trials, jobs, strict=True):
        assert each.spec["parallel_strategy"]["data_parallel"] == 2
        assert each.result is not None
        assert trial.values == {"eval_loss": each.result["eval_loss"]}
        assert sorted(trial.curve) == [10, 20]
        assert not house.events(each.id, "checkpoint_loaded")


def children(house: House, job: JobView) -> list[JobView]:
    """By trial."""
    with house.client() as client:
        return sorted(client.list(parent=job.id).items, key=lambda each: each.trial or 0)


def drivers_of(house: House, job: JobView) -> list[psutil.Process]:
    """The processes of a study's driver; there are some."""
    found = [p for p in house.cluster.processes() if "tuning.driver" in p.cmdline() and job.id in " ".join(p.cmdline())]
    assert found
    return found


def trials_done(job: JobView) -> int:
    return next((phase.done for phase in job.progress if phase.phase == "trials"), 0)

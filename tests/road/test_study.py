"""A study over REST on a real cluster, and what it survives."""

import signal
from collections.abc import Callable
from typing import Any

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
    return [(each.number, each.point, each.state, each.values, each.curve, each.reason) for each in trials]


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
    drivers = [p for p in house.cluster.processes() if "tuning.driver" in p.cmdline() and job.id in " ".join(p.cmdline())]
    assert drivers
    house.kill()
    for driver in drivers:
        driver.send_signal(signal.SIGKILL)
    house.start()
    again = house.ended(job.id)
    assert again.state is JobState.SUCCEEDED, again.failure
    assert again.attempt == 2
    assert decided(house, again) == decided(house, ended)


def trials_done(job: JobView) -> int:
    return next((phase.done for phase in job.progress if phase.phase == "trials"), 0)

"""What a study may count on, wherever its trials run: in warm actors, as jobs of a service whose cluster only pretends, or
nowhere, as in the tests of its loop."""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.settings import Settings
from service.launcher import LaunchState, LaunchStatus
from service.states import FINAL, JobState
from service.views import JobView
from tests.api.conftest import FakeLauncher, Manta
from tests.tuning import tiny
from tests.tuning.fakes import FakeTrials
from tests.tuning.talk import heard, steps, to_the_end
from tests.workers.conftest import tiny_data as tiny_data
from tuning.children import ChildrenApi, ChildTrials
from tuning.pool import ActorTrials
from tuning.trials import Assignment, Ended, Measured, Trials
from workers.attempt import Order, Report, ReportBatch, ReportKind
from workers.spec import TrainSpec


def job(**training: Any) -> dict[str, Any]:
    """Its checkpoints are on disk when a trial measures."""
    return tiny.job(**training) | {"checkpoint": {"interval": 2, "asynchronous": False}}


# -- a cluster that pretends -------------------------------------------------------------------------------------------


@dataclass
class Pretender(FakeLauncher):
    """Reports of every training job what one says that trains, at once, up to step ``hold_at``, where it goes on in silence."""

    hold_at: int | None = None
    orders: dict[str, Order] = field(default_factory=dict)

    def submit(self, submission_id: str, entrypoint: str, env: Mapping[str, str]) -> None:
        super().submit(submission_id, entrypoint, env)
        if submission_id in self.orders:
            return
        order = Order.model_validate_json(Path(shlex.split(entrypoint)[-1]).read_bytes())
        self.orders[submission_id] = order
        if order.kind == "train" and (state := self._train(order)) is not None:
            self.states[submission_id] = LaunchStatus(state)

    def _train(self, order: Order) -> LaunchState | None:
        spec = TrainSpec.model_validate(order.spec)
        if spec.training.global_batch_size > 1000:
            failure = {"code": "not_enough_data", "detail": "the data has too few rows"}
            _send(order, [("failure", failure), ("ended", {"outcome": "failed"})])
            return "failed"
        said: list[tuple[ReportKind, dict[str, Any]]] = []
        for step in range(1, spec.total_steps + 1):
            values = {"loss": 1 / step, "tokens_per_second": 9.0 * step, "step_seconds": 0.5 * step}
            said.append(("metrics", {"step": step, "values": values}))
            if step % (spec.training.eval_interval or 1) == 0:
                said.append(("metrics", {"step": step, "values": {"eval_loss": 1 / step}}))
            if step == self.hold_at:
                _send(order, said)
                return None
        result: dict[str, Any] = {
            "eval_loss": 0.1,
            "train_loss": 0.2,
            "tokens_per_second": 0.0,
            "seconds": 1.0,
            "mfu": None,
            "samples": [],
        }
        _send(order, [*said, ("result", result), ("ended", {"outcome": "succeeded"})])
        return "succeeded"


def _send(order: Order, said: Sequence[tuple[ReportKind, dict[str, Any]]]) -> None:
    reports = [
        Report(generation=0, rank=-1, sequence=number, kind=kind, time=1.0, data=data)
        for number, (kind, data) in enumerate(said, 1)
    ]
    url = f"{order.service_url}/api/v1/jobs/{order.job_id}/attempts/{order.attempt}/reports"
    headers = {"Authorization": f"Bearer {order.token}"}
    body = ReportBatch(reports=reports).model_dump(mode="json")
    httpx.post(url, json=body, headers=headers, trust_env=False).raise_for_status()


class Jobs:
    """A study whose trials are jobs; ``trials`` is what its driver works with."""

    def __init__(self, home: Path) -> None:
        self.launcher = Pretender(cpus=8)
        self.manta = Manta(Settings(home=home), self.launcher)
        rate = {"type": "float", "low": 1e-4, "high": 1e-2}
        study = {"kind": "tune", "name": "study", "base": job(), "space": {"training.learning_rate": rate}, "trials": "jobs"}
        self.study = self.manta.client.submit(study).id
        self.attempt = 1
        self.api = ChildrenApi(self.order())
        self.trials = self.drive([])

    def order(self) -> Order:
        name = f"manta-{self.study}-{self.attempt}"
        until(lambda: name in self.launcher.orders)
        return self.launcher.orders[name]

    def drive(self, running: Sequence[int]) -> ChildTrials:
        return ChildTrials(self.api, 1, running, pause=lambda seconds: time.sleep(0.01))  # for what other threads do

    def again(self) -> ChildTrials:
        self.launcher.states[f"manta-{self.study}-{self.attempt}"] = LaunchStatus("failed")
        self.attempt += 1
        self.api = ChildrenApi(self.order())
        return self.drive([0])

    def child(self) -> JobView:
        (found,) = self.manta.client.list(parent=self.study).items
        return found

    def stop(self) -> None:
        self.api.close()
        self.manta.stop()


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(tmp_path / "home")
    yield made
    made.stop()


# -- the contract ------------------------------------------------------------------------------------------------------


@dataclass
class Place:
    trials: Trials
    again: Callable[[], Trials]
    """What the study's next attempt works with."""


FIGURES = {"eval_loss": 0.1, "train_loss": 0.2, "loss": 0.2, "seconds": 1.0, "memory_bytes": 1e6, "tokens_per_second": 9.0}


def pretended(job: Mapping[str, Any], step: int) -> Mapping[str, float] | Ended:
    if job["training"]["global_batch_size"] > 1000:
        return Ended(0, "failed", code="not_enough_data", reason="the data has too few rows")
    return FIGURES if step == job["training"]["steps"] else {"loss": 1 / step, "eval_loss": 1 / step}


@pytest.fixture(params=[pytest.param("inside", marks=pytest.mark.cluster), "jobs", "nowhere"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "jobs":
        found: Jobs = request.getfixturevalue("jobs")
        yield Place(found.trials, found.again)
        return
    if request.param == "nowhere":
        yield Place(FakeTrials(pretended, (2, 4, 6)), lambda: FakeTrials(pretended, (2, 4, 6)))
        return
    request.getfixturevalue("ray_cluster")
    data = request.getfixturevalue("tiny_data")
    made = [ActorTrials(1, {"CPU": 1}, tmp_path, attempt, lambda spec: data) for attempt in (1, 2)]
    yield Place(made[0], lambda: made[1])
    for each in made:
        each.close()


def test_a_trial_measures_and_ends_with_its_figures(place: Place) -> None:
    place.trials.begin(Assignment(0, job()))
    assert place.trials.free == 0
    *measured, ended = to_the_end(place.trials)
    assert steps(measured) == [2, 4]
    assert all(isinstance(news, Measured) and news.metrics.keys() >= {"loss", "eval_loss"} for news in measured)
    assert isinstance(ended, Ended)
    assert (ended.number, ended.outcome) == (0, "succeeded")
    assert ended.metrics.keys() >= {"eval_loss", "train_loss", "loss", "seconds", "memory_bytes", "tokens_per_second"}
    assert place.trials.free == 1


def test_a_trial_that_is_stopped_says_so_and_no_more(place: Place) -> None:
    place.trials.begin(Assignment(0, job()))
    assert steps([heard(place.trials)]) == [2]
    place.trials.answer(0, go_on=False)
    assert heard(place.trials) == Ended(0, "stopped")
    assert place.trials.free == 1


def test_a_trial_that_the_user_can_mend_says_what_and_is_not_run_again(place: Place) -> None:
    place.trials.begin(Assignment(0, job(global_batch_size=4096)))
    ended = heard(place.trials)
    assert isinstance(ended, Ended)
    assert (ended.outcome, ended.code, ended.retry) == ("failed", "not_enough_data", False)
    assert "rows" in ended.reason


def test_a_trial_goes_on_with_the_next_attempt(place: Place) -> None:
    place.trials.begin(Assignment(0, job()))
    first = heard(place.trials)
    place.trials.answer(0, go_on=True)
    second = heard(place.trials)
    place.trials.close()
    trials = place.again()
    trials.begin(Assignment(0, job()))
    said = to_the_end(trials)
    assert steps([first, second]) == [2, 4]
    assert steps(said) in ([2, 4], [4]), "what it had measured may come again"
    assert isinstance(said[-1], Ended)
    assert said[-1].outcome == "succeeded"


# -- of jobs alone -----------------------------------------------------------------------------------------------------


def test_what_a_job_measured_before_it_heard_of_its_end_is_dropped(jobs: Jobs) -> None:
    jobs.launcher.hold_at = 5
    jobs.trials.begin(Assignment(0, job()))
    assert steps([heard(jobs.trials)]) == [2]
    jobs.trials.answer(0, go_on=False)
    assert heard(jobs.trials) == Ended(0, "stopped")
    until(lambda: jobs.child().state in FINAL)
    assert (jobs.child().state, jobs.child().reason) == (JobState.CANCELLED, "study")


def test_a_job_that_its_user_cancels_is_a_failed_trial(jobs: Jobs) -> None:
    jobs.launcher.hold_at = 1
    jobs.trials.begin(Assignment(0, job()))
    until(lambda: not jobs.trials.news(0) and bool(jobs.manta.client.list(parent=jobs.study).items))
    jobs.manta.client.cancel(jobs.child().id)
    ended = heard(jobs.trials)
    assert ended == Ended(0, "failed", code="cancelled", reason=f"its job {jobs.child().id} was cancelled")


def test_the_end_of_a_study_is_no_end_of_its_trials(jobs: Jobs) -> None:
    jobs.launcher.hold_at = 1
    jobs.trials.begin(Assignment(0, job()))
    until(lambda: not jobs.trials.news(0) and bool(jobs.manta.client.list(parent=jobs.study).items))
    jobs.manta.client.cancel(jobs.study)
    until(lambda: jobs.child().state is JobState.CANCELLED)
    assert jobs.trials.news(0) == []
    assert jobs.trials.free == 0


def test_trials_that_were_decided_upon_before_the_driver_died_are_ended(jobs: Jobs) -> None:
    jobs.launcher.hold_at = 1
    jobs.trials.begin(Assignment(0, job()))
    until(lambda: not jobs.trials.news(0) and bool(jobs.manta.client.list(parent=jobs.study).items))
    assert jobs.drive([]).news(0) == []
    until(lambda: jobs.child().state is JobState.CANCELLED)


def test_a_service_that_is_away_is_asked_again(jobs: Jobs) -> None:
    url, jobs.api._url = jobs.api._url, "http://127.0.0.1:9/nobody"
    jobs.trials.begin(Assignment(0, job()))
    assert jobs.trials.news(0) == []
    jobs.api._url = url
    assert steps(to_the_end(jobs.trials)) == [2, 4]


def test_a_job_that_was_restarted_has_the_rate_of_all_its_steps(jobs: Jobs) -> None:
    jobs.trials.begin(Assignment(0, job()))
    *_, ended = to_the_end(jobs.trials)
    assert isinstance(ended, Ended)
    steps_taken = range(1, 7)
    assert ended.metrics["tokens_per_second"] == pytest.approx(9 * sum(n * n for n in steps_taken) / sum(steps_taken))


def test_a_job_that_is_refused_is_a_failed_trial(jobs: Jobs) -> None:
    jobs.trials.begin(Assignment(0, job() | {"parallel_strategy": {"tensor_parallel": 2}}))
    ended = heard(jobs.trials)
    assert isinstance(ended, Ended)
    assert (ended.outcome, ended.code) == ("failed", "spec_invalid")
    assert "tensor_parallel" in ended.reason

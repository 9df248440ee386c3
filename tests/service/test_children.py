"""Trials that are jobs: what the driver of a study may do with them, and what becomes of them with their study."""

from typing import Any

import pytest

from service.attempts import InvalidToken, StaleAttempt
from service.children import Children, child_name
from service.jobs import TooManyJobs
from service.spec import TuneJob
from service.states import FINAL, IllegalTransition, JobState
from service.store import JobNotFound
from service.validation import SpecInvalid
from service.views import JobView
from tests.service.fakes import Driver, Manta
from tuning.views import ChildView

S = JobState
SPACE = {"training.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2}}
BASE = {"training": {"steps": 100, "eval_interval": 10}, "parallel_strategy": {"data_parallel": 2}}


class House:
    """A study on a cluster of four CPUs, with the driver of its newest attempt."""

    def __init__(self, manta: Manta) -> None:
        self.manta = manta
        self.children = Children(manta.store, clock=manta.clock)
        self.study = manta.jobs.create(TuneJob.model_validate({"name": "study", "base": BASE, "space": SPACE})).job.id
        manta.supervisor.tick()

    @property
    def driver(self) -> Driver:
        return self.manta.driver(self.study)

    def begin(self, trial: int, driver: Driver | None = None, **job: Any) -> ChildView:
        order = (driver or self.driver).order
        return self.children.begin(self.study, order.attempt, order.token, trial, {**BASE, **job})

    def look(self, trial: int, after: int = 0) -> ChildView:
        order = self.driver.order
        return self.children.look(self.study, order.attempt, order.token, trial, after)

    def cancel(self, trial: int) -> None:
        order = self.driver.order
        self.children.cancel(self.study, order.attempt, order.token, trial)

    def keep(self, *trials: int) -> None:
        order = self.driver.order
        self.children.keep(self.study, order.attempt, order.token, trials)

    def child(self, trial: int) -> JobView:
        """The job of a trial; there is one."""
        (found,) = [job for job in self.manta.jobs.list(parent=self.study).items if job.trial == trial]
        return found

    def started(self, trial: int) -> Driver:
        """The driver of a trial that trains."""
        self.begin(trial)
        self.manta.pass_time(4)
        child = self.manta.driver(self.child(trial).id)
        child.trains(1)
        return child

    def lost(self) -> None:
        """The study's driver is killed."""
        self.manta.launcher.states[f"manta-{self.study}-{self.driver.order.attempt}"] = "failed"
        self.manta.pass_time(10)


@pytest.fixture
def house(manta: Manta) -> House:
    return House(manta)


def test_a_study_whose_trials_are_jobs_takes_nothing_itself_and_they_queue_for_what_they_need(house: House) -> None:
    for trial in range(3):
        house.begin(trial)
    house.manta.pass_time(4)
    states = [(house.child(trial).state, house.child(trial).why_pending) for trial in range(3)]
    assert states[:2] == [(S.PREPARING, None), (S.PREPARING, None)]
    assert states[2] == (S.QUEUED, "needs 2 CPUs; 0 CPUs of 4 CPUs free while study-0, study-1 run")


def test_a_trial_that_is_begun_again_is_the_same_job(house: House) -> None:
    first = house.begin(0)
    assert (first.state, first.figures) == ("queued", [])
    assert house.begin(0).job_id == first.job_id
    job = house.child(0)
    assert (job.id, job.name, job.kind, job.parent, job.trial) == (first.job_id, "study-0", "train", house.study, 0)
    assert job.spec["training"]["steps"] == 100
    house.started(0)
    house.lost()
    assert house.driver.order.attempt == 2
    assert house.begin(0).state == "running", "it went on without the study's driver"
    assert house.child(0).attempt == 1


def test_a_long_name_leaves_room_for_the_number() -> None:
    assert child_name("s" * 47, 12) == "s" * 44 + "-12"


def test_a_look_brings_what_is_new_and_in_the_end_the_result(house: House) -> None:
    child = house.started(0)
    child.send(child.report("metrics", step=10, values={"eval_loss": 2.5}))
    seen = house.look(0)
    assert [(each.step, each.values) for each in seen.figures] == [(1, {"loss": 1.0}), (10, {"eval_loss": 2.5})]
    assert house.look(0, seen.figures[-1].id).figures == []
    child.send(child.report("result", rank=-1, eval_loss=2.0))
    child.ends("succeeded")
    house.manta.pass_time(1)
    ended = house.look(0, seen.figures[-1].id)
    assert (ended.state, ended.result, ended.failure) == ("succeeded", {"eval_loss": 2.0}, None)
    assert house.begin(0).state == "succeeded", "what has ended is not run twice"


def test_who_is_not_the_newest_attempt_is_refused(house: House) -> None:
    old = house.driver
    with pytest.raises(InvalidToken):
        house.children.begin(house.study, 1, "another", 0, BASE)
    house.lost()
    with pytest.raises(StaleAttempt):
        house.begin(0, old)
    with pytest.raises(StaleAttempt):
        house.children.look(house.study, 1, old.order.token, 0, 0)
    with pytest.raises(StaleAttempt):
        house.children.cancel(house.study, 1, old.order.token, 0)
    with pytest.raises(StaleAttempt):
        house.children.keep(house.study, 1, old.order.token, [])
    assert house.manta.jobs.list(parent=house.study).items == []


def test_what_is_no_job_is_refused_with_the_field(house: House) -> None:
    with pytest.raises(SpecInvalid, match="/training/steps"):
        house.begin(0, training={"steps": -1})
    with pytest.raises(JobNotFound, match="trial 7"):
        house.look(7)


@pytest.mark.parametrize("state", ["running", "queued"])
def test_trials_pause_and_go_on_with_their_study(house: House, state: str) -> None:
    child = house.started(0) if state == "running" else house.begin(0) and None
    house.manta.jobs.pause(house.study)
    assert house.child(0).state is (S.PAUSING if child else S.PAUSED)
    with pytest.raises(IllegalTransition, match="no trial begins"):
        house.begin(1)
    if child:
        assert child.send() == "paused"
        child.ends("paused")
    house.driver.ends("paused")
    house.manta.pass_time(1)
    assert (house.manta.job(house.study).state, house.child(0).state, house.child(0).reason) == (S.PAUSED, S.PAUSED, "study")
    house.manta.jobs.resume(house.study)
    house.manta.pass_time(1)
    assert house.child(0).state is S.PAUSED, "until the study's driver begins it"
    assert house.begin(0).state == "queued"
    house.manta.pass_time(4)
    assert house.child(0).attempt == (2 if child else 1)


def test_a_trial_that_its_user_paused_or_cancelled_stays_so(house: House) -> None:
    house.started(0)
    house.begin(1)
    house.manta.jobs.cancel(house.child(0).id)
    house.manta.jobs.pause(house.child(1).id)
    house.manta.pass_time(1)
    assert [(each.state, each.reason) for each in (house.begin(0), house.begin(1))] == [
        ("cancelled", "user"),
        ("paused", "user"),
    ]


def test_trials_are_cancelled_with_their_study_and_begun_again_with_it(house: House) -> None:
    child = house.started(0)
    house.begin(1)
    house.manta.jobs.cancel(house.study)
    assert [house.child(trial).state for trial in (0, 1)] == [S.CANCELLING, S.CANCELLED]
    house.manta.pass_time(1)
    assert [(house.child(trial).state, house.child(trial).reason) for trial in (0, 1)] == [(S.CANCELLED, "study")] * 2
    with pytest.raises(StaleAttempt):
        child.send()
    house.manta.jobs.retry(house.study)
    house.manta.pass_time(1)
    assert [house.begin(trial).state for trial in (0, 1)] == ["queued", "queued"]


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
def test_no_trial_outlives_its_study(house: House, outcome: str) -> None:
    house.started(0)
    house.driver.ends(outcome)
    house.manta.pass_time(2)
    assert house.manta.job(house.study).state == outcome
    assert (house.child(0).state, house.child(0).reason) == (S.CANCELLED, "study")


def test_a_trial_is_stopped_and_one_that_has_ended_is_left_alone(house: House) -> None:
    house.started(0)
    house.cancel(0)
    house.manta.pass_time(1)
    assert house.child(0).state is S.CANCELLED
    house.cancel(0)
    assert house.child(0).state is S.CANCELLED


def test_trials_that_no_study_waits_for_are_ended(house: House) -> None:
    for trial in range(3):
        house.begin(trial)
    house.keep(1)
    assert [house.child(trial).state for trial in range(3)] == [S.CANCELLED, S.QUEUED, S.CANCELLED]


def test_trials_are_not_counted_against_the_limit_of_jobs(small: Manta) -> None:
    small.jobs._max_unfinished = 1
    house = House(small)
    house.begin(0)
    house.begin(1)
    with pytest.raises(TooManyJobs, match="1 jobs have not ended"):
        small.submit()


def test_a_study_is_deleted_with_its_trials_once_all_have_ended(house: House) -> None:
    house.started(0)
    child = house.child(0)
    house.manta.launcher.obeys = False
    house.driver.ends("failed")
    house.manta.pass_time(2)
    assert house.child(0).state is S.CANCELLING
    with pytest.raises(IllegalTransition, match=f"job {child.id} is cancelling"):
        house.manta.jobs.delete(house.study)
    house.manta.launcher.states[f"manta-{child.id}-1"] = "stopped"
    house.manta.pass_time(2)
    assert house.child(0).state in FINAL
    assert house.manta.jobs.directory(child.id).exists()
    house.manta.jobs.delete(house.study)
    assert house.manta.jobs.list().items == []
    assert not house.manta.jobs.directory(child.id).exists()

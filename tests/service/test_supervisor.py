"""The supervisor against a cluster that tests move by hand: every job ends where its user wants it, and waits for its turn."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.exc import TimeoutError

from service.models import Job
from service.policies import Budgets, Grace
from service.states import JobState
from service.store import Store
from tests.service.fakes import Manta
from workers.attempt import Desired
from workers.spec import ElasticSpec

S = JobState


# -- the straight road -------------------------------------------------------------------------------------------------


def test_a_job_goes_from_queued_to_succeeded(manta: Manta) -> None:
    job_id, driver = manta.started()
    assert manta.job(job_id).state is S.PREPARING
    assert manta.launcher.begun == [f"manta-{job_id}-1"]
    assert driver.trains(1) is Desired.RUNNING
    assert manta.job(job_id).state is S.RUNNING
    driver.send(driver.report("result", rank=-1, steps=100))
    driver.ends("succeeded")
    manta.pass_time(1)
    job = manta.job(job_id)
    assert (job.state, job.reason, job.result) == (S.SUCCEEDED, "completed", {"steps": 100})
    (attempt,) = manta.history.attempts(job_id)
    assert (attempt.state, attempt.outcome) == ("ended", "succeeded")
    assert manta.event_types(job_id) == ["submitted", "state", "attempt_started", "state", "state"]


def test_the_driver_is_given_its_order_in_a_file(manta: Manta) -> None:
    job_id, driver = manta.started()
    path = manta.jobs.directory(job_id) / "attempts" / "1" / "order.json"
    assert manta.launcher.entrypoints[f"manta-{job_id}-1"].endswith(f"-m workers.driver {path}")
    assert "kind" not in driver.order.spec
    assert driver.order.spec["gpu_config"]["nodes"] == 2
    assert driver.order.job_dir == manta.jobs.directory(job_id)


def test_the_token_is_nowhere_but_in_the_order_file(manta: Manta) -> None:
    job_id, driver = manta.started()
    shown = [manta.job(job_id), *manta.history.attempts(job_id), *manta.history.events(job_id).items]
    assert all(driver.order.token not in view.model_dump_json() for view in shown)
    assert driver.order.token not in manta.launcher.entrypoints[f"manta-{job_id}-1"]


def test_a_job_is_not_succeeded_before_its_processes_are_gone(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.trains(1)
    driver.send(driver.report("ended", rank=-1, outcome="succeeded"))
    manta.pass_time(3)
    assert manta.job(job_id).state is S.RUNNING
    manta.launcher.states[f"manta-{job_id}-1"] = "succeeded"
    manta.pass_time(1)
    assert manta.job(job_id).state is S.SUCCEEDED


def test_an_attempt_that_does_not_go_after_its_last_word_is_stopped(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.send(driver.report("ended", rank=-1, outcome="succeeded"))
    manta.pass_time(Grace().exit + 2)
    assert manta.launcher.stops == [f"manta-{job_id}-1"]
    assert manta.job(job_id).state is S.SUCCEEDED


def test_a_failure_that_the_attempt_reports_is_final_and_keeps_its_words(manta: Manta) -> None:
    job_id, driver = manta.started()
    said = {"code": "source_unreadable", "detail": "no such file", "pointer": "/data_pipeline/sources/0/path"}
    driver.send(driver.report("failure", rank=-1, **said))
    driver.ends("failed", launch="failed")
    manta.pass_time(1)
    job = manta.job(job_id)
    assert (job.state, job.reason, job.failure) == (S.FAILED, "worker_failed", said)
    manta.pass_time(60)
    assert len(manta.launcher.begun) == 1


# -- resources ---------------------------------------------------------------------------------------------------------


def test_of_two_jobs_on_a_machine_for_one_the_second_waits_and_says_why(store: Store, tmp_path: Path) -> None:
    manta = Manta(store, tmp_path, cpus=3)
    first, driver = manta.started("first")
    second = manta.submit("second")
    manta.pass_time(5)
    waiting = manta.job(second)
    assert waiting.state is S.QUEUED
    assert waiting.why_pending == "needs 2 CPUs; 1 CPU of 3 CPUs free while first runs"
    driver.trains(1)
    driver.ends("succeeded")
    manta.pass_time(1)
    assert manta.job(first).state is S.SUCCEEDED
    assert manta.job(second).state is S.PREPARING
    assert manta.job(second).why_pending is None


def test_jobs_start_in_the_order_they_were_queued(small: Manta) -> None:
    ids = [small.submit(f"job-{n}", workers=4) for n in range(3)]
    for number, job_id in enumerate(ids):
        small.pass_time(1)
        assert small.launcher.begun == [f"manta-{each}-1" for each in ids[: number + 1]]
        small.driver(job_id).ends("succeeded")
        small.pass_time(1)


def test_a_look_at_a_long_queue_reads_each_job_a_few_times_not_once_for_each_other(small: Manta) -> None:
    for number in range(12):
        small.submit(f"job-{number}", workers=64)
    here, loaded = threading.get_ident(), 0

    def loads(*_: object) -> None:
        nonlocal loaded
        loaded += threading.get_ident() == here  # SQLAlchemy's listeners hear every service of the process

    event.listen(Job, "load", loads)
    try:
        small.supervisor.tick()
    finally:
        event.remove(Job, "load", loads)
    assert 12 <= loaded <= 4 * 12


def test_run_waits_out_a_database_whose_connections_are_all_taken(small: Manta, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = small.another_supervisor("here", idle_seconds=0.0)
    looks = iter([TimeoutError("QueuePool limit"), None])

    def tick() -> int:
        if (error := next(looks)) is not None:
            raise error
        supervisor.stop()
        return 0

    monkeypatch.setattr(supervisor, "tick", tick)
    supervisor.run()
    assert list(looks) == []


def test_a_job_that_no_cluster_of_this_size_can_run_holds_up_nobody(small: Manta) -> None:
    giant = small.submit("giant", workers=64)
    modest = small.submit("modest")
    small.pass_time(1)
    assert small.job(giant).why_pending == "needs 64 CPUs; the whole cluster has 4 CPUs"
    assert small.job(modest).state is S.PREPARING
    small.launcher.size = type(small.launcher.size)(128, 0)
    small.pass_time(5)
    assert small.job(giant).state is S.PREPARING


def test_two_supervisors_at_once_do_not_give_the_same_cpus_away(manta: Manta) -> None:
    for number in range(6):
        manta.submit(f"job-{number}", workers=4)
    both = [manta.another_supervisor("one"), manta.another_supervisor("two")]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            list(pool.map(lambda supervisor: supervisor.tick(), both))
    assert len(manta.launcher.begun) == 1


# -- what the user does ------------------------------------------------------------------------------------------------


def test_a_running_job_is_paused_at_its_checkpoint_and_resumed_by_a_new_attempt(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.trains(5)
    assert manta.jobs.pause(job_id).state is S.PAUSING
    assert driver.trains(6) is Desired.PAUSED
    driver.ends("paused")
    manta.pass_time(1)
    assert manta.job(job_id).state is S.PAUSED
    manta.pass_time(60)
    assert manta.launcher.running == []
    manta.jobs.resume(job_id)
    manta.pass_time(1)
    assert manta.launcher.running == [f"manta-{job_id}-2"]
    assert manta.driver(job_id).trains(7) is Desired.RUNNING
    assert (manta.job(job_id).state, manta.job(job_id).restarts) == (S.RUNNING, 0)


def test_a_pause_that_the_attempt_does_not_heed_stops_it_after_a_grace(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.trains(5)
    manta.jobs.pause(job_id)
    manta.pass_time(Grace().pause - 1)
    assert manta.launcher.stops == []
    manta.pass_time(8)
    assert manta.launcher.stops == [f"manta-{job_id}-1"]
    assert (manta.job(job_id).state, manta.job(job_id).reason) == (S.PAUSED, "attempt_lost")


@pytest.mark.parametrize("phase", ["documents", "tokenizer", "shards", "training"])
def test_a_job_is_cancelled_in_every_phase_and_nothing_of_it_is_left(manta: Manta, phase: str) -> None:
    job_id, driver = manta.started()
    driver.send(driver.report("phase", rank=-1, phase=phase, done=1, total=2, unit="things"))
    manta.pass_time(2)
    assert manta.jobs.cancel(job_id).state is S.CANCELLING
    assert driver.send() is Desired.CANCELLED
    assert manta.jobs.cancel(job_id).state is S.CANCELLING
    manta.pass_time(1)
    assert manta.job(job_id).state is S.CANCELLED
    assert manta.launcher.running == []
    assert manta.launcher.stops == [f"manta-{job_id}-1"]


def test_cancelled_is_not_said_while_the_cluster_cannot_be_asked(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.trains(1)
    manta.launcher.away = True
    manta.jobs.cancel(job_id)
    manta.pass_time(3 * Budgets().lookup_seconds)
    assert manta.job(job_id).state is S.CANCELLING
    manta.launcher.away = False
    manta.pass_time(15)
    assert manta.job(job_id).state is S.CANCELLED
    assert manta.launcher.running == []


def test_an_attempt_that_ignores_its_stop_is_stopped_again(small: Manta) -> None:
    job_id, _ = small.started()
    small.launcher.obeys = False
    small.jobs.cancel(job_id)
    small.pass_time(21)
    assert len(small.launcher.stops) == 3
    assert small.job(job_id).state is S.CANCELLING
    small.launcher.obeys = True
    small.pass_time(12)
    assert small.job(job_id).state is S.CANCELLED


def test_a_cancel_during_a_pause_wins(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.trains(1)
    manta.jobs.pause(job_id)
    manta.jobs.cancel(job_id)
    assert driver.send() is Desired.CANCELLED
    driver.ends("cancelled")
    manta.pass_time(1)
    assert manta.job(job_id).state is S.CANCELLED


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
def test_a_job_that_ends_while_it_is_paused_has_ended(manta: Manta, outcome: str) -> None:
    job_id, driver = manta.started()
    driver.trains(1)
    manta.jobs.pause(job_id)
    driver.ends(outcome)
    manta.pass_time(1)
    assert manta.job(job_id).state == outcome


def test_a_failed_or_cancelled_job_is_retried_with_a_fresh_budget(manta: Manta) -> None:
    job_id = manta.submit(elastic=ElasticSpec(max_attempts=2))
    for retry in range(2):
        for _ in range(2):
            manta.pass_time(1)
            manta.launcher.states[manta.launcher.begun[-1]] = "failed"
            manta.pass_time(6)
        job = manta.job(job_id)
        assert (job.state, job.reason, job.attempt) == (S.FAILED, "attempts_spent", 2 * (retry + 1))
        assert manta.jobs.retry(job_id).failure is None
    manta.jobs.cancel(job_id)
    manta.jobs.retry(job_id)
    manta.pass_time(1)
    assert manta.launcher.running == [f"manta-{job_id}-5"]

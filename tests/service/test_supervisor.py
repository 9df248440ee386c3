"""The supervisor against a cluster that tests move by hand: every job ends where its user wants it, whatever goes wrong."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.exc import TimeoutError

from service.attempts import InvalidToken, StaleAttempt
from service.launcher import LaunchState
from service.models import Job
from service.policies import Budgets, Grace
from service.states import LIVE, IllegalTransition, JobState
from service.store import Store, lock_job
from tests.service.fakes import Manta
from workers.attempt import Desired, ReportBatch
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


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launch", ["failed", "stopped", "succeeded"])
def test_an_attempt_that_ends_without_a_word_is_lost_and_followed_by_another(manta: Manta, launch: LaunchState) -> None:
    job_id, driver = manta.started()
    driver.trains(3)
    manta.launcher.states[f"manta-{job_id}-1"] = launch
    manta.pass_time(7)
    job = manta.job(job_id)
    assert (job.state, job.attempt, job.restarts) == (S.PREPARING, 2, 1)
    assert [each.outcome for each in manta.history.attempts(job_id)] == ["lost", None]
    assert "attempt_lost" in manta.event_types(job_id)


def test_when_the_last_attempt_is_lost_the_job_fails_with_its_log(manta: Manta) -> None:
    job_id, _ = manta.started(elastic=ElasticSpec(max_attempts=1))
    log = manta.jobs.directory(job_id) / "logs" / "attempt-1" / "driver.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\ntwo\x00\n")
    manta.launcher.states[f"manta-{job_id}-1"] = "failed"
    manta.pass_time(3)
    job = manta.job(job_id)
    assert (job.state, job.reason) == (S.FAILED, "attempts_spent")
    assert job.failure is not None
    assert job.failure["code"] == "attempts_spent"
    assert job.failure["detail"] == "the job's only attempt was lost; the last: its driver ended without a last word"
    assert job.failure["log_tail"] == ["one", "two\ufffd"]


def test_a_driver_that_died_before_it_had_a_log_is_quoted_from_the_launcher(small: Manta) -> None:
    job_id, _ = small.started(elastic=ElasticSpec(max_attempts=1))
    small.launcher.message = "failed with exit code 1, last available logs:\nTraceback ..."
    small.launcher.printed = "Traceback (most recent call last):\nModuleNotFoundError: No module named 'workers'\n"
    small.launcher.states[f"manta-{job_id}-1"] = "failed"
    small.pass_time(3)
    failure = small.job(job_id).failure
    assert failure is not None
    assert failure["detail"] == "the job's only attempt was lost; the last: failed with exit code 1, last available logs"
    assert failure["log_tail"][-1] == "ModuleNotFoundError: No module named 'workers'"
    assert small.history.attempts(job_id)[0].detail == "failed with exit code 1, last available logs"


def _spool(manta: Manta, job_id: str) -> Path:
    spool = manta.jobs.directory(job_id) / "attempts" / "1" / "spool"
    spool.mkdir()
    return spool


def test_a_cluster_that_forgot_a_silent_attempt_has_lost_it(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.trains(3)
    spool = _spool(manta, job_id)  # what it had sent and what it had not are still on disk: no sign of life
    (spool / "g0-r0.jsonl").write_text("\n".join(driver.report("heartbeat", step=3).model_dump_json() for _ in range(2)))
    (spool / "g0-r0.sent").write_text("3")
    manta.launcher.forget()
    manta.pass_time(Budgets().unknown_seconds - 1)
    assert manta.job(job_id).attempt == 1
    manta.pass_time(5)
    assert manta.job(job_id).attempt == 2


def test_a_failed_look_up_is_not_a_failed_job(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.trains(1)
    manta.launcher.away = True
    for step in range(2, 14):  # twice the time budget without a launcher, but with reports
        manta.pass_time(10)
        driver.trains(step)
    assert manta.job(job_id).state is S.RUNNING
    manta.launcher.away = False
    driver.ends("succeeded")
    manta.pass_time(11)
    assert manta.job(job_id).state is S.SUCCEEDED


def test_a_silent_attempt_of_a_silent_cluster_is_given_up_and_ended_before_another_starts(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.trains(1)
    manta.launcher.away = True
    manta.pass_time(Budgets().lookup_seconds - 10)
    assert manta.job(job_id).state is S.RUNNING
    manta.pass_time(60)
    job = manta.job(job_id)
    assert job.state is S.QUEUED
    assert job.why_pending == "the cluster does not answer: connection refused"
    with pytest.raises(StaleAttempt):
        driver.trains(2)
    manta.launcher.obeys = False
    manta.launcher.away = False
    manta.pass_time(5)
    assert manta.job(job_id).why_pending == "waits until attempt 1, which was lost, has stopped"
    manta.launcher.obeys = True
    manta.pass_time(3)
    assert manta.launcher.running == [f"manta-{job_id}-2"]


def test_cancelling_a_job_whose_attempt_was_given_up_waits_until_that_has_ended(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.trains(1)
    manta.launcher.away = True
    manta.pass_time(120)
    assert manta.job(job_id).state is S.QUEUED
    assert manta.jobs.cancel(job_id).state is S.CANCELLING
    manta.launcher.away = False
    manta.pass_time(15)
    assert manta.job(job_id).state is S.CANCELLED
    assert manta.launcher.running == []
    assert [each.outcome for each in manta.history.attempts(job_id)] == ["lost"]


def test_while_the_cluster_is_away_nothing_starts_and_nothing_is_spent(manta: Manta) -> None:
    manta.launcher.away = True
    job_id = manta.submit()
    manta.pass_time(2 * Budgets().lookup_seconds)
    assert manta.job(job_id).state is S.QUEUED
    assert manta.job(job_id).why_pending == "the cluster does not answer: connection refused"
    manta.launcher.away = False
    manta.pass_time(5)
    assert (manta.job(job_id).state, manta.job(job_id).attempt) == (S.PREPARING, 1)


def test_storage_that_cannot_be_written_is_named_and_tried_again(small: Manta) -> None:
    small.home.mkdir()
    (small.home / "jobs").write_text("a file where a directory should be")
    job_id = small.submit()
    small.pass_time(1)
    assert "cannot write to the job's storage" in (small.job(job_id).why_pending or "")
    (small.home / "jobs").unlink()
    small.pass_time(5)
    assert small.job(job_id).state is S.PREPARING


def test_an_older_attempt_is_fenced_off(manta: Manta) -> None:
    job_id, old = manta.started()
    old.trains(3)
    manta.launcher.states[f"manta-{job_id}-1"] = "failed"
    manta.pass_time(7)
    with pytest.raises(StaleAttempt) as refused:
        old.trains(4)
    assert (refused.value.code, refused.value.status) == ("stale_attempt", 409)
    manta.driver(job_id).trains(3)
    assert [(metric.step, metric.attempt) for metric in manta.history.metrics(job_id).items] == [(3, 2)]


def test_an_ended_attempt_is_fenced_off_too(manta: Manta) -> None:
    _, driver = manta.started()
    driver.ends("succeeded")
    manta.pass_time(1)
    with pytest.raises(StaleAttempt):
        driver.trains(4)


def test_only_the_attempt_s_own_token_opens_the_door(manta: Manta) -> None:
    job_id, driver = manta.started()
    other_job, other = manta.started("other")
    batch = ReportBatch(reports=[driver.report("heartbeat", step=1)])
    for token in ("", "wrong", other.order.token):
        with pytest.raises(InvalidToken) as refused:
            manta.reports.ingest(job_id, 1, token, batch)
        assert refused.value.status == 401
    with pytest.raises(StaleAttempt):
        manta.reports.ingest(other_job, 2, other.order.token, batch)


def test_reports_left_on_disk_are_stored_before_the_attempt_is_closed(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.trains(1)
    spool = _spool(manta, job_id)
    left = [
        driver.report("metrics", step=2, values={"loss": 0.5}),
        driver.report("metrics", step="malformed"),
        driver.report("result", steps=2),
        driver.report("ended", outcome="succeeded"),
    ]
    torn = json.dumps({"generation": 0, "rank": 0})[:-5]
    (spool / "g0-r1.jsonl").mkdir()  # cannot be read
    (spool / "g0-r0.jsonl").write_text("\n".join([*(report.model_dump_json() for report in left), torn]))
    manta.launcher.states[f"manta-{job_id}-1"] = "succeeded"
    manta.pass_time(7)
    job = manta.job(job_id)
    assert (job.state, job.result) == (S.SUCCEEDED, {"steps": 2})
    assert [metric.step for metric in manta.history.metrics(job_id).items] == [1, 2]


def test_look_ups_are_rare_while_reports_come(small: Manta) -> None:
    _, driver = small.started()
    small.pass_time(2)
    small.launcher.lookups = 0
    for step in range(1, 61):
        small.pass_time(1)
        driver.trains(step)
    assert small.launcher.lookups <= 13


def test_a_job_that_cannot_be_looked_at_stops_no_other(manta: Manta, caplog: pytest.LogCaptureFixture) -> None:
    poisoned = manta.submit("poisoned")
    with manta.store.write() as session:
        lock_job(session, poisoned).spec = {"elastic": {"max_attempts": "poison"}}
    manta.supervisor.tick()
    healthy = manta.submit("healthy")
    manta.pass_time(10)
    assert manta.job(healthy).state is S.PREPARING
    failed = [record for record in caplog.records if record.exc_info]
    assert [poisoned in record.getMessage() for record in failed] == [True]  # put off, not tried again and again
    manta.pass_time(60)
    assert manta.launcher.running.count(f"manta-{healthy}-1") == 1


@pytest.mark.parametrize("call", ["capacity", "stop"])
def test_a_cancel_while_a_queued_job_is_about_to_start_wins(manta: Manta, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    job_id, driver = manta.started()
    driver.trains(1)
    manta.launcher.away = True
    manta.pass_time(120)
    assert manta.job(job_id).state is S.QUEUED
    manta.launcher.away = False
    real = getattr(manta.launcher, call)

    def cancels(*args: object) -> object:
        monkeypatch.undo()
        manta.jobs.cancel(job_id)
        return real(*args)

    monkeypatch.setattr(manta.launcher, call, cancels)
    manta.pass_time(15)
    assert manta.job(job_id).state is S.CANCELLED
    assert manta.job(job_id).why_pending is None
    assert manta.launcher.begun == [f"manta-{job_id}-1"]


def test_a_paused_job_whose_attempt_was_given_up_is_not_deleted_before_that_has_ended(manta: Manta) -> None:
    job_id, driver = manta.started(elastic=ElasticSpec(max_attempts=1))
    driver.trains(1)
    manta.launcher.away = True
    manta.pass_time(120)
    assert manta.job(job_id).state is S.FAILED
    with pytest.raises(IllegalTransition):
        manta.jobs.delete(job_id)
    manta.launcher.away = False
    manta.pass_time(10)
    assert manta.launcher.running == []
    assert manta.job(job_id).state is S.FAILED
    assert manta.store.next_look() is None
    manta.jobs.delete(job_id)


# -- the supervisor itself ---------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The service dies here."""


class Tripwire:
    """Lets ``left`` crossings pass, then the service dies."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash


def _dies_after(manta: Manta, crossings: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """One life of the service that ends after so many effects, each of them just before or just after it."""
    trip = Tripwire(crossings)
    with monkeypatch.context() as patch:
        write = Store.write

        def dying_write(store: Store):  # type: ignore[no-untyped-def]
            trip()
            return write(store)

        for name in ("submit", "stop", "status", "capacity"):
            real = getattr(manta.launcher, name)

            def dying(*args: object, real=real):  # type: ignore[no-untyped-def]
                trip()
                answer = real(*args)
                trip()
                return answer

            patch.setattr(manta.launcher, name, dying)
        patch.setattr(Store, "write", dying_write)
        supervisor = manta.another_supervisor("here")
        try:
            supervisor.tick()
            manta.clock.now += 1
            supervisor.tick()
        except Crash:
            return True
    return False


def test_wherever_the_service_dies_a_start_loses_nothing_and_submits_nothing_twice(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crossings, died = 0, True
    while died:
        manta = Manta(store, tmp_path / str(crossings))
        job_id = manta.submit(f"crash-{crossings}")
        died = _dies_after(manta, crossings, monkeypatch)
        manta.pass_time(2, manta.another_supervisor("here"))
        assert manta.launcher.begun == [f"manta-{job_id}-1"]
        assert manta.driver(job_id).trains(1) is Desired.RUNNING
        manta.driver(job_id).ends("succeeded")
        manta.pass_time(1, manta.another_supervisor("here"))
        assert manta.job(job_id).state is S.SUCCEEDED
        crossings += 1
    assert crossings > 6


def test_wherever_the_service_dies_a_cancel_leaves_nothing_running(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crossings, died = 0, True
    while died:
        manta = Manta(store, tmp_path / str(crossings))
        job_id, _ = manta.started(f"crash-{crossings}")
        manta.jobs.cancel(job_id)
        died = _dies_after(manta, crossings, monkeypatch)
        manta.pass_time(15, manta.another_supervisor("here"))
        assert manta.job(job_id).state is S.CANCELLED
        assert manta.launcher.running == []
        crossings += 1
    assert crossings > 4


def test_a_cancel_before_a_crashed_submit_is_known_starts_nothing_more(manta: Manta, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = manta.submit()
    with monkeypatch.context() as patch:
        patch.setattr(manta.launcher, "submit", lambda *_: Tripwire(0)())
        with pytest.raises(Crash):  # the service dies between the row and the submit
            manta.supervisor.tick()
    assert manta.job(job_id).state is S.PREPARING
    manta.jobs.cancel(job_id)
    manta.pass_time(1, manta.another_supervisor("here"))
    assert manta.job(job_id).state is S.CANCELLED
    assert manta.launcher.begun == []


def test_a_restarted_service_adopts_what_runs(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.trains(1)
    restarted = manta.another_supervisor("here")
    manta.pass_time(20, restarted)
    assert manta.launcher.begun == [f"manta-{job_id}-1"]
    driver.trains(2)
    driver.ends("succeeded")
    manta.pass_time(1, restarted)
    assert manta.job(job_id).state is S.SUCCEEDED


def test_another_supervisor_takes_over_when_the_lease_has_expired(manta: Manta) -> None:
    job_id = manta.submit()
    manta.store.claim("dead", manta.clock.now, 90)
    manta.pass_time(80)
    assert manta.launcher.begun == []
    manta.pass_time(15)
    assert manta.launcher.begun == [f"manta-{job_id}-1"]


def test_a_step_whose_lease_was_taken_meanwhile_writes_nothing(manta: Manta) -> None:
    job_id = manta.submit()
    submit = manta.launcher.submit

    def stolen(*args: object) -> None:
        submit(*args)  # type: ignore[arg-type]
        manta.store.claim("thief", manta.clock.now + 1000, 90)

    manta.launcher.submit = stolen  # type: ignore[method-assign]
    manta.supervisor.tick()
    assert [each.state for each in manta.history.attempts(job_id)] == ["submitting"]
    manta.launcher.submit = submit  # type: ignore[method-assign]
    manta.clock.now += 2000
    manta.pass_time(1, manta.another_supervisor("thief"))
    assert [each.state for each in manta.history.attempts(job_id)] == ["running"]
    assert manta.launcher.begun == [f"manta-{job_id}-1"]


def test_run_starts_a_submitted_job_without_waiting_for_its_next_look(small: Manta) -> None:
    supervisor = small.another_supervisor("here", idle_seconds=3600.0)
    began = small.launcher.submit
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(supervisor.run)

        def stops_the_supervisor(*args: object) -> None:
            began(*args)  # type: ignore[arg-type]
            supervisor.stop()

        small.launcher.submit = stops_the_supervisor  # type: ignore[method-assign]
        job_id = small.submit()
        running.result(timeout=60)
    assert small.launcher.begun == [f"manta-{job_id}-1"]
    assert small.job(job_id).state in LIVE

"""Attempts that end without a word, clusters that do not answer, storage that is full: a job still ends as its user wants."""

import json
from pathlib import Path

import pytest

from service.attempts import InvalidToken, StaleAttempt
from service.launcher import LaunchState
from service.policies import Budgets
from service.states import IllegalTransition, JobState
from service.store import lock_job
from tests.service.fakes import Manta
from workers.attempt import ReportBatch
from workers.spec import ElasticSpec

S = JobState


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

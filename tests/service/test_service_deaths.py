"""The supervisor dies, is started again or is one of two: nothing is lost, and nothing is started twice."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.states import LIVE, JobState
from service.store import Store
from tests.service.fakes import Manta
from workers.attempt import Desired

S = JobState


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

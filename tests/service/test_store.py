"""Leases, listeners and migrations, on every database."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from service.models import Base
from service.store import Change, StaleLease, Store, lock_job
from tests.service.fakes import Manta


def test_the_migrations_make_what_the_models_say(store: Store) -> None:
    with store.read() as session:
        options = {"version_table": "manta_alembic", "compare_type": True, "target_metadata": Base.metadata}
        context = MigrationContext.configure(session.connection(), opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_optuna_can_keep_its_own_migrations_beside_ours(store: Store) -> None:
    with store.read() as session:
        tables = inspect(session.connection()).get_table_names()
    assert "manta_alembic" in tables
    assert "alembic_version" not in tables


def test_services_that_start_at_once_migrate_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/home/manta.db"
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(Store.open, [url] * 4))
    for store in stores:
        store.ping()
        store.close()


@pytest.mark.postgres
def test_services_that_start_at_once_on_postgresql_migrate_once(postgres_url: str, postgres_store: Store) -> None:
    with postgres_store._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("DROP DATABASE IF EXISTS fresh"))
        connection.execute(text("CREATE DATABASE fresh"))
    url = postgres_url.replace("/postgres?", "/fresh?")
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(Store.open, [url] * 4))
    for store in stores:
        store.ping()
        store.close()


def test_sqlite_is_set_up_for_one_service_that_must_not_lose_or_wait(sqlite_store: Store) -> None:
    with sqlite_store.read() as session:
        found = {name: session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "foreign_keys", "busy_timeout")}
    assert found == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30000}


def test_a_job_is_claimed_by_one_supervisor_at_a_time(manta: Manta) -> None:
    job_id = manta.submit()
    now = manta.clock.now
    (lease,) = manta.store.claim("a", now, 30)
    assert lease.job_id == job_id
    assert manta.store.claim("b", now + 29, 30) == []
    assert len(manta.store.claim("b", now + 30, 30)) == 1


def test_supervisors_that_claim_at_once_share_the_jobs_out(manta: Manta) -> None:
    ids = {manta.submit(f"job-{n}") for n in range(12)}
    with ThreadPoolExecutor(4) as pool:
        claims = list(pool.map(lambda n: manta.store.claim(f"supervisor-{n}", manta.clock.now, 30, limit=3), range(4)))
    claimed = [lease.job_id for leases in claims for lease in leases]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) <= ids


def test_a_service_that_starts_again_takes_its_own_leases_at_once(manta: Manta) -> None:
    manta.submit()
    (old,) = manta.store.claim("a", manta.clock.now, 30)
    (new,) = manta.store.claim("a", manta.clock.now, 30)
    assert new.token != old.token
    with pytest.raises(StaleLease):
        manta.store.release(old, manta.clock.now)


def test_a_write_under_a_lost_lease_is_dropped(manta: Manta) -> None:
    job_id = manta.submit()
    (old,) = manta.store.claim("a", manta.clock.now, 30)
    manta.store.claim("b", manta.clock.now + 31, 30)
    with pytest.raises(StaleLease), manta.store.step(old) as (_, job):
        job.why_pending = "never written"
    assert manta.job(job_id).why_pending is None


def test_a_released_job_is_due_again_at_its_time(manta: Manta) -> None:
    manta.submit()
    now = manta.clock.now
    (lease,) = manta.store.claim("a", now, 30)
    manta.store.release(lease, now + 5)
    assert manta.store.next_look() == now + 5
    assert manta.store.claim("b", now + 4, 30) == []
    assert len(manta.store.claim("b", now + 5, 30)) == 1


def test_what_its_user_does_during_a_step_is_looked_at_right_after_it(manta: Manta) -> None:
    manta.submit("a")
    other = manta.submit("b")
    now = manta.clock.now
    leases = {lease.job_id: lease for lease in manta.store.claim("a", now, 30)}
    manta.jobs.pause(other)
    manta.jobs.resume(other)
    for lease in leases.values():
        if lease.job_id != other:  # the move has ended the other's lease
            manta.store.release(lease, now + 60)
    assert manta.store.next_look() == 0.0


def test_a_job_that_another_holds_is_not_due_before_its_lease_ends(manta: Manta) -> None:
    job_id = manta.submit()
    manta.store.claim("other", manta.clock.now, 30)
    with manta.store.write() as session:
        lock_job(session, job_id).look_at = 0.0  # as its user's actions do
    assert manta.store.next_look() == manta.clock.now + 30


def test_an_ended_job_is_nobody_s_business(manta: Manta) -> None:
    manta.jobs.cancel(manta.submit())
    assert manta.store.claim("a", manta.clock.now, 30) == []
    assert manta.store.next_look() is None


def test_listeners_hear_what_was_committed_until_they_leave(manta: Manta) -> None:
    heard: list[Change] = []
    leave = manta.store.subscribe(heard.append)
    job_id = manta.submit()
    leave()
    manta.jobs.cancel(job_id)
    assert heard == [Change(job_id, lifecycle=True)]

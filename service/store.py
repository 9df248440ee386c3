"""The only writer of truth: SQLite (WAL) or PostgreSQL behind one URL, in short transactions.

A write that touches a job takes that job's row first, and so do all others: the rows of one job (metrics, events) become
visible in the order of their ids, and a reader that has seen id 7 never finds a 6 later.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Self

from alembic import command
from alembic.config import Config
from sqlalchemy import ColumnElement, Connection, Engine, and_, case, create_engine, event, func, or_, select, text, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.orm import Session

from data.errors import MantaError
from service.models import Attempt, Job
from service.states import SUPERVISED, JobState

MIGRATIONS = Path(__file__).parent / "migrations"
_ADVISORY_LOCKS = {"migrate": 0x6D616E7461, "start": 0x6D616E7462}


class JobNotFound(MantaError):
    code = "job_not_found"
    status = 404


class StaleLease(Exception):
    """Another supervisor holds the job now; what this one was about to write is dropped."""


@dataclass(frozen=True)
class Lease:
    """The right to decide about one job, until it expires or another takes it."""

    job_id: str
    token: str


@dataclass(frozen=True)
class Change:
    """Something about a job was written. ``lifecycle``: its state or what is wanted of it, not just figures."""

    job_id: str
    lifecycle: bool


class Store:
    """Open with ``Store.open(url)``: ``sqlite:///path``, or ``postgresql://...`` (psycopg 3). Safe to use from threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing = engine.execution_options(manta_write=True)
        self._listeners: list[Callable[[Change], None]] = []
        self._listening = Lock()

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect and bring the schema up to date; of several services that start at once, one migrates.

        Raises sqlalchemy.exc.OperationalError when the database does not answer.
        """
        store = cls(_engine(make_url(url)))
        with store._writing.begin() as connection:
            advisory_lock(connection, "migrate")
            _migrate(connection)
        return store

    def close(self) -> None:
        self._engine.dispose()

    def ping(self) -> None:
        """Raises sqlalchemy.exc.OperationalError when the database does not answer."""
        with self._engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One consistent look; what it loaded stays readable afterwards."""
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction; commits at the end, rolls back when anything raises."""
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    # -- who listens -------------------------------------------------------------------------------------------------------

    def subscribe(self, listener: Callable[[Change], None]) -> Callable[[], None]:
        """Call ``listener`` after each commit of this process, on the writer's thread; be quick. Returns the way out."""
        with self._listening:
            self._listeners = [*self._listeners, listener]

        def leave() -> None:
            with self._listening:
                self._listeners = [each for each in self._listeners if each is not listener]

        return leave

    def changed(self, job_id: str, *, lifecycle: bool) -> None:
        """Tell the listeners; to be called once the transaction is committed."""
        for listener in self._listeners:
            listener(Change(job_id, lifecycle))

    # -- leases ------------------------------------------------------------------------------------------------------------

    def claim(self, owner: str, now: float, seconds: float, limit: int = 16) -> list[Lease]:
        """Take up to ``limit`` jobs that are due and that nobody else holds; first in the queue, first taken.

        ``owner``'s own leases are free to it: a service that starts again adopts at once what it held when it died.
        """
        free = and_(Job.look_at <= now, or_(Job.lease_token.is_(None), Job.lease_expires_at <= now))
        due = (
            select(Job)
            .where(_supervised(), or_(free, Job.lease_owner == owner))
            .order_by(Job.queued_at, Job.number)
            .limit(limit)
            .with_for_update(key_share=True, skip_locked=True)
        )
        with self.write() as session:
            leases = []
            for job in session.scalars(due):
                job.lease_owner, job.lease_token, job.lease_expires_at = owner, secrets.token_hex(16), now + seconds
                job.look_at = job.lease_expires_at
                leases.append(Lease(job.id, job.lease_token))
        return leases

    @contextmanager
    def step(self, lease: Lease) -> Iterator[tuple[Session, Job]]:
        """A transaction that holds the leased job's row. Raises ``StaleLease`` when the lease is another's by now."""
        mine = select(Job).where(Job.id == lease.job_id, Job.lease_token == lease.token).with_for_update(key_share=True)
        with self.write() as session:
            job = session.scalar(mine)
            if job is None:
                raise StaleLease(lease.job_id)
            yield session, job

    def release(self, lease: Lease, look_at: float) -> None:
        """Give the job back; it is due again at ``look_at``, or at once if something asked for that meanwhile."""
        with self.step(lease) as (_, job):
            give_back(job, look_at)

    def next_look(self) -> float | None:
        """When the next job is due; None without jobs. One that is held is not due before its lease ends."""
        held = and_(Job.lease_token.is_not(None), Job.lease_expires_at > Job.look_at)
        due = case((held, Job.lease_expires_at), else_=Job.look_at)
        with self.read() as session:
            first: float | None = session.scalar(select(func.min(due)).where(_supervised()))
        return first


def _supervised() -> ColumnElement[bool]:
    """Jobs that the supervisor has something to do with; a job that was left may have an attempt that is not gone."""
    unseen = select(Attempt.id).where(Attempt.job_id == Job.id, Attempt.number == Job.attempt, Attempt.gone.is_(False))
    return or_(Job.state.in_(SUPERVISED), and_(Job.state.in_((JobState.PAUSED, JobState.FAILED)), unseen.exists()))


def advisory_lock(connection: Connection, name: str) -> None:
    """Alone among all services until the transaction ends. SQLite's writers are alone anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCKS[name]})


def lock_job(session: Session, job_id: str) -> Job:
    """The job, its row held until the transaction ends. Raises ``JobNotFound``."""
    job = session.scalar(select(Job).where(Job.id == job_id).with_for_update(key_share=True))
    if job is None:
        raise JobNotFound(f"there is no job {job_id}")
    return job


def give_back(job: Job, look_at: float) -> None:
    """End the lease on a job whose row the caller holds."""
    job.lease_owner = job.lease_token = job.lease_expires_at = None
    # A cancel that came during this step has set 0: it must not wait for the next look.
    job.look_at = look_at if job.look_at else 0.0


def wake_queue(session: Session) -> None:
    """Something was freed, or the queue's order changed: queued jobs are due now.

    Rows that another transaction holds are passed over: whoever holds them looks soon, and waiting here with a row in hand
    is how two of these would block each other.
    """
    queued = select(Job.number).where(Job.state == JobState.QUEUED).with_for_update(key_share=True, skip_locked=True)
    session.execute(update(Job).where(Job.number.in_(queued)).values(look_at=0.0))


def _engine(url: URL) -> Engine:
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url)
    event.listen(engine, "connect", _sqlite_connected)
    event.listen(engine, "begin", _sqlite_begins)
    return engine


def _sqlite_connected(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # Python's driver leaves BEGIN to us, as SQLAlchemy's documentation has it.
    for pragma in ("journal_mode = WAL", "foreign_keys = ON", "busy_timeout = 30000", "synchronous = NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begins(connection: Connection) -> None:
    # A transaction that reads first and writes later could fail half-way; a writer says so at its beginning.
    write = connection.get_execution_options().get("manta_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def migration_config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _migrate(connection: Connection) -> None:
    command.upgrade(migration_config(connection), "head")

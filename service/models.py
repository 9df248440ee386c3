"""The tables. Times are Unix seconds (UTC) by the service's clock; JSON columns are replaced, never changed in place."""

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Double, Enum, ForeignKey, Index, Integer, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.states import JobState, Reason
from workers.attempt import Desired

# SQLite counts rows only in a column that is INTEGER to the letter.
RowId = BigInteger().with_variant(Integer(), "sqlite")


def _text_enum(kind: type[JobState] | type[Reason] | type[Desired]) -> Enum:
    return Enum(kind, native_enum=False, length=24, create_constraint=False, values_callable=lambda e: [m.value for m in e])


class Base(DeclarativeBase):
    # Every constraint has a name, so that a later migration can change it.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        int: BigInteger(),
        float: Double(),
        str: Text(),
        dict[str, Any]: JSON(none_as_null=True),
        list[list[int]]: JSON(),
        JobState: _text_enum(JobState),
        Reason: _text_enum(Reason),
        Desired: _text_enum(Desired),
    }


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "parent", "trial", unique=True),
        # AUTOINCREMENT: the number of a deleted row is never given again, or cursors would point at another job.
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(RowId, primary_key=True)
    """Order of submission; what list cursors count by."""
    id: Mapped[str] = mapped_column(String(32), unique=True)
    name: Mapped[str] = mapped_column(String(64), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    spec: Mapped[dict[str, Any]]
    parent: Mapped[str | None] = mapped_column(String(32))
    """The study whose trial it is, by id, and the trial's number. A study is deleted together with its children."""
    trial: Mapped[int | None]
    state: Mapped[JobState] = mapped_column(index=True)
    desired: Mapped[Desired]
    reason: Mapped[Reason]
    why_pending: Mapped[str | None]
    attempt: Mapped[int] = mapped_column(default=0)
    losses: Mapped[int] = mapped_column(default=0)
    """Attempts lost since the budget was last fresh."""
    restarts: Mapped[int] = mapped_column(default=0)
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """phase -> ``{attempt, generation, done, total, unit, reused, samples: [[time, done], ...]}``."""
    failure: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    cpus: Mapped[float]
    gpus: Mapped[float]
    """What its workers take of the cluster while it is live."""
    total_steps: Mapped[int | None]
    """Of its training, by the spec."""
    created_at: Mapped[float]
    queued_at: Mapped[float]
    """Its place in the queue."""
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    moved_at: Mapped[float]
    """When the state was last changed."""
    look_at: Mapped[float] = mapped_column(default=0.0, index=True)
    """The supervisor looks at the job no earlier; 0 is at once."""
    lease_owner: Mapped[str | None] = mapped_column(String(128))
    lease_token: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[float | None]


def _job_key() -> Mapped[str]:
    return mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))


class Attempt(Base):
    __tablename__ = "attempts"
    __table_args__ = (UniqueConstraint("job_id", "number"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    job_id: Mapped[str] = _job_key()
    number: Mapped[int]
    state: Mapped[str] = mapped_column(String(16), default="submitting")
    """``submitting``, ``running``, ``ended``."""
    outcome: Mapped[str | None] = mapped_column(String(16))
    """Its last word while it is not ended; afterwards what became of it."""
    submission_id: Mapped[str] = mapped_column(String(128))
    token_hash: Mapped[str] = mapped_column(String(64))
    first_generation: Mapped[int | None]
    """The lowest and the highest generation that a worker reported in."""
    generation: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[float]
    ended_at: Mapped[float | None]
    outcome_at: Mapped[float | None]
    reported_at: Mapped[float | None]
    """The last report of any rank, on the service's clock."""
    failed_lookups: Mapped[int] = mapped_column(default=0)
    """Status look-ups in a row that brought no answer, and since when."""
    failing_since: Mapped[float | None]
    stopped_at: Mapped[float | None]
    """When the launcher was last asked to stop it."""
    gone: Mapped[bool] = mapped_column(default=False)
    """The launcher said that nothing of it runs."""
    failure: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    detail: Mapped[str | None]


class Worker(Base):
    __tablename__ = "workers"
    __table_args__ = (UniqueConstraint("job_id", "attempt", "generation", "rank"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    job_id: Mapped[str] = _job_key()
    attempt: Mapped[int]
    generation: Mapped[int]
    rank: Mapped[int]
    node: Mapped[str] = mapped_column(default="")
    pid: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(String(16), default="started")
    """``started``, ``ended``, ``died``."""
    step: Mapped[int | None]
    heartbeat_at: Mapped[float]


class Metric(Base):
    __tablename__ = "metrics"
    __table_args__ = (
        UniqueConstraint("job_id", "step"),
        Index(None, "job_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    job_id: Mapped[str] = _job_key()
    attempt: Mapped[int]
    generation: Mapped[int]
    step: Mapped[int]
    at: Mapped[float]
    figures: Mapped[dict[str, Any]]
    """name -> ``[value, rank, sequence]``; rank and sequence say which report stands when two name one figure."""


class Event(Base):
    __tablename__ = "events"
    __table_args__ = (Index(None, "job_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    job_id: Mapped[str] = _job_key()
    at: Mapped[float]
    type: Mapped[str] = mapped_column(String(64))
    actor: Mapped[str] = mapped_column(String(64))
    message: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Checkpoint(Base):
    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    job_id: Mapped[str] = _job_key()
    step: Mapped[int]
    attempt: Mapped[int]
    generation: Mapped[int]
    path: Mapped[str]
    bytes: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float]


class Receipt(Base):
    """Which report sequences of one reporter have been stored."""

    __tablename__ = "receipts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    generation: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    rank: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    received: Mapped[list[list[int]]]
    """Closed ranges, ascending; one range while nothing came out of order."""


class JournalLine(Base):
    """An entry of a study's journal (Optuna's): the one record of its trials."""

    __tablename__ = "journal_lines"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    line: Mapped[dict[str, Any]]


class IdempotencyKey(Base):
    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_hash: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = _job_key()
    created_at: Mapped[float]

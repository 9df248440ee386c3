"""What the API shows of the store: the shapes that routes answer with and the client parses."""

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from service.states import JobState
from workers.attempt import Desired

T = TypeVar("T")


class View(BaseModel):
    # JSON has no NaN; a loss that diverged is "NaN" in a string, which the client reads back as a float.
    model_config = ConfigDict(from_attributes=True, ser_json_inf_nan="strings")


class PhaseView(View):
    """Progress of one phase; ``rate`` is units a second over the last seconds, ``eta_seconds`` None while unknown."""

    phase: str
    done: int
    total: int | None
    unit: str
    reused: bool
    rate: float | None
    eta_seconds: float | None


class JobView(View):
    id: str
    name: str
    kind: str
    parent: str | None
    """The study whose trial it is, by id."""
    trial: int | None
    """The trial's number."""
    state: JobState
    desired: Desired
    reason: str | None
    """Why the job is in its state, as a stable code (``user``, ``study``, ``completed``, ``worker_failed`` ...)."""
    why_pending: str | None
    """While queued: what it waits for, in words."""
    attempt: int
    """Number of the newest attempt; 0 before the first."""
    restarts: int
    """Worker groups and attempts started again after a fault."""
    progress: list[PhaseView]
    step: int | None
    total_steps: int | None
    failure: dict[str, Any] | None
    """``{code, detail, pointer, rank, node, step, log_tail}`` of a failed job."""
    result: dict[str, Any] | None
    """Of a finished job: ``workers.attempt.Summary`` of training, ``DataSummary`` of data, ``tuning.views.StudySummary``."""
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    spec: dict[str, Any]


class AttemptView(View):
    number: int
    state: str
    """``submitting, running, ended``"""
    outcome: str | None
    """``succeeded, failed, paused, cancelled, lost``"""
    submission_id: str
    generation: int
    created_at: datetime
    ended_at: datetime | None
    detail: str | None


class WorkerView(View):
    attempt: int
    generation: int
    rank: int
    node: str
    pid: int
    state: str
    step: int | None
    heartbeat_at: datetime


class EventView(View):
    """``id`` grows with time and is the SSE event id."""

    id: int
    at: datetime
    type: str
    actor: str
    """``user``, ``study``, ``supervisor`` or ``attempt-N``."""
    message: str
    data: dict[str, Any]


class MetricView(View):
    """The figures of one step. ``id`` grows with every write, so a repeated step is streamed again."""

    id: int
    attempt: int
    generation: int
    step: int
    at: datetime
    values: dict[str, float]


class CheckpointView(View):
    step: int
    attempt: int
    path: str
    bytes: int
    state: str
    """``committed`` or ``deleted``."""
    created_at: datetime


class Page(BaseModel, Generic[T]):
    items: list[T]
    next_cursor: str | None
    """Opaque; pass it as ``cursor`` for the next page. None: this is the last."""

"""What became of a job: attempts, workers, checkpoints, events, metrics, logs; as pages and as live streams."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api import docs, stream
from api.logs import InvalidPosition, Position
from api.routes.jobs import Cursor, Limit
from api.services import ExistingId, JobId, Use
from service import cursors
from service.views import AttemptView, CheckpointView, EventView, MetricView, Page, WorkerView
from workers.attempt import DRIVER_RANK

router = APIRouter(prefix="/jobs/{job_id}", tags=["history"], responses=docs.problems(404))
streams = APIRouter(
    prefix="/jobs/{job_id}", tags=["live"], default_response_class=EventSourceResponse, responses=docs.problems(404, 422)
)

MAX_ID = 2**63 - 1
After = Annotated[int | None, Query(ge=0, le=MAX_ID, description="Only rows with an id above this one.")]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", description="The last event that the client has seen.")]


@router.get("/attempts", operation_id="listAttempts")
def attempts(job_id: JobId, use: Use) -> list[AttemptView]:
    """Oldest first."""
    return use.history.attempts(job_id)


@router.get("/workers", operation_id="listWorkers")
def workers(job_id: JobId, use: Use, attempt: Annotated[int | None, Query(ge=0, le=2**31)] = None) -> list[WorkerView]:
    """Every worker process that there was, by attempt, generation and rank."""
    return use.history.workers(job_id, attempt)


@router.get("/checkpoints", operation_id="listCheckpoints")
def checkpoints(job_id: JobId, use: Use) -> list[CheckpointView]:
    """By step; those that were deleted since are marked so."""
    return use.history.checkpoints(job_id)


@router.get("/events", operation_id="listEvents", responses=docs.problems(422))
def events(job_id: JobId, use: Use, after: After = None, cursor: Cursor = None, limit: Limit = 200) -> Page[EventView]:
    """What happened, in order, and by whom."""
    return use.history.events(job_id, cursor=_cursor("events", after, cursor), limit=limit)


@router.get("/metrics", operation_id="listMetrics", responses=docs.problems(422))
def metrics(job_id: JobId, use: Use, after: After = None, cursor: Cursor = None, limit: Limit = 1000) -> Page[MetricView]:
    """Figures of each step in the order of writing; a step that was done again comes again. NaN is `"NaN"`."""
    return use.history.metrics(job_id, cursor=_cursor("metrics", after, cursor), limit=limit)


def _cursor(listing: str, after: int | None, cursor: str | None) -> str | None:
    return cursors.encode(listing, after) if after is not None and cursor is None else cursor


def _last_id(last_event_id: LastEventId = None, after: After = None) -> int:
    """Where a stream of rows begins. Raises ``InvalidPosition``."""
    if last_event_id is None:
        return after or 0
    if not last_event_id.isascii() or not last_event_id.isdigit() or int(last_event_id) > MAX_ID:
        raise InvalidPosition("the Last-Event-ID is not one of this stream; start again without it")
    return int(last_event_id)


def _log_position(last_event_id: LastEventId = None) -> Position:
    return Position() if last_event_id is None else Position.parse(last_event_id)


@streams.get("/stream", operation_id="streamJob")
async def job_stream(job_id: ExistingId, use: Use) -> AsyncIterator[ServerSentEvent]:
    """The job (event `job`) whenever something about it changed, until it has ended (event `end`)."""
    async for event in stream.snapshots(use.changes, use.jobs, job_id):
        yield event


@streams.get("/events/stream", operation_id="streamEvents")
async def event_stream(
    job_id: ExistingId, use: Use, after: Annotated[int, Depends(_last_id)]
) -> AsyncIterator[ServerSentEvent]:
    """Events from the first, or from behind `Last-Event-ID`, until the job has ended (event `end`)."""
    fetch = partial(use.history.events_after, job_id)
    async for event in stream.rows(use.changes, use.jobs, job_id, after, fetch, "event"):
        yield event


@streams.get("/metrics/stream", operation_id="streamMetrics")
async def metric_stream(
    job_id: ExistingId, use: Use, after: Annotated[int, Depends(_last_id)]
) -> AsyncIterator[ServerSentEvent]:
    """Figures from the first step, or from behind `Last-Event-ID`, until the job has ended (event `end`)."""
    fetch = partial(use.history.metrics_after, job_id)
    async for event in stream.rows(use.changes, use.jobs, job_id, after, fetch, "metric"):
        yield event


@streams.get("/logs", operation_id="streamLogs")
async def log_stream(
    job_id: ExistingId,
    use: Use,
    position: Annotated[Position, Depends(_log_position)],
    rank: Annotated[int | None, Query(ge=DRIVER_RANK, le=2**31, description="Only this rank's; -1 is the driver.")] = None,
    attempt: Annotated[int | None, Query(ge=1, le=2**31, description="Only this attempt's.")] = None,
    follow: Annotated[bool, Query(description="Go on until the job has ended.")] = True,
) -> AsyncIterator[ServerSentEvent]:
    """Log lines (event `log`), attempt by attempt, the ranks of one merged by time; then `end`. Resumes at the exact byte."""
    async for event in stream.logs(use.changes, use.jobs, job_id, position, rank=rank, attempt=attempt, follow=follow):
        yield event

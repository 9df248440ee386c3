"""Server-sent events out of the store: each stream reads what is behind its cursor, then waits until something was written.

An event's id is the row's, so ``Last-Event-ID`` resumes exactly. A stream ends with an ``end`` event once its job has ended;
without one (the service goes down) the client connects again with the id that it saw last.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from anyio import move_on_after, to_thread
from fastapi.sse import ServerSentEvent

from api.logs import Position, read
from service.jobs import Jobs
from service.states import FINAL
from service.store import Change, JobNotFound
from service.views import EventView, MetricView, View

POLL_SECONDS = 1.0
"""Between looks without a wake-up: another replica may have written."""
LOG_POLL_SECONDS = 0.25
"""Workers append to their logs without telling anybody."""
BATCH = 500
RETRY_MILLISECONDS = 1000
DELETED = "deleted"
"""What the ``end`` event says of a job that was deleted meanwhile."""
ENDED = FINAL | {DELETED}


class Changes:
    """Wakes the streams of a job when this process wrote something about it. Lives on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.closed = False

    @property
    def watchers(self) -> int:
        """Streams that are open now."""
        return sum(map(len, self._waiting.values()))

    def notify(self, change: Change) -> None:
        """From any thread: the store's listener."""
        self._loop.call_soon_threadsafe(self._wake, change.job_id)

    def close(self) -> None:
        """From any thread or signal handler: all streams end soon, without their ``end`` event."""
        self.closed = True
        self._loop.call_soon_threadsafe(self._wake, None)

    @contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[job_id].discard(event)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    def _wake(self, job_id: str | None) -> None:
        for waiting, events in self._waiting.items():
            if job_id in (None, waiting):
                for event in events:
                    event.set()


async def rows(
    changes: Changes,
    jobs: Jobs,
    job_id: str,
    after: int,
    fetch: Callable[[int, int], Sequence[EventView | MetricView]],
    name: str,
) -> AsyncIterator[ServerSentEvent]:
    """Rows with ids above ``after``, oldest first, as they come; ``fetch(after, limit)`` reads them."""
    yield ServerSentEvent(retry=RETRY_MILLISECONDS, comment=name)
    with changes.watch(job_id) as changed:
        while not changes.closed:
            changed.clear()
            # The state before the rows: what led to a final state was written with it or earlier.
            state = await to_thread.run_sync(_state, jobs, job_id)
            while state != DELETED and (batch := await to_thread.run_sync(fetch, after, BATCH)):
                for row in batch:
                    after = row.id
                    yield ServerSentEvent(data=row, event=name, id=str(after))
            if state in ENDED:
                yield _end(state)
                return
            await _wait(changed, POLL_SECONDS)


async def snapshots(changes: Changes, jobs: Jobs, job_id: str) -> AsyncIterator[ServerSentEvent]:
    """The job itself, whenever it is no longer what was sent last."""
    sent: View | None = None
    with changes.watch(job_id) as changed:
        while not changes.closed:
            changed.clear()
            try:
                job = await to_thread.run_sync(jobs.get, job_id)
            except JobNotFound:
                yield _end(DELETED)
                return
            if job != sent:
                yield ServerSentEvent(data=job, event="job", retry=RETRY_MILLISECONDS)
                sent = job
            if job.state in FINAL:
                yield _end(job.state)
                return
            await _wait(changed, POLL_SECONDS)


async def logs(
    changes: Changes, jobs: Jobs, job_id: str, position: Position, *, rank: int | None, attempt: int | None, follow: bool
) -> AsyncIterator[ServerSentEvent]:
    """Lines of the job's logs; ``follow`` goes on until the job has ended, else until the last line there is."""
    yield ServerSentEvent(retry=RETRY_MILLISECONDS, comment="log")
    directory = jobs.directory(job_id) / "logs"
    with changes.watch(job_id) as changed:
        while not changes.closed:
            changed.clear()
            state = await to_thread.run_sync(_state, jobs, job_id)
            final = state in ENDED
            look = partial(read, directory, rank=rank, attempt=attempt, final=final, limit=BATCH)
            while lines := await to_thread.run_sync(look, position):
                for position, line in lines:
                    yield ServerSentEvent(data=line, event="log", id=str(position))
            if final or not follow:
                yield _end(state)
                return
            await _wait(changed, LOG_POLL_SECONDS)


def _state(jobs: Jobs, job_id: str) -> str:
    try:
        return jobs.get(job_id).state
    except JobNotFound:
        return DELETED


def _end(state: str) -> ServerSentEvent:
    return ServerSentEvent(event="end", data={"state": state})


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    with move_on_after(seconds):
        await changed.wait()

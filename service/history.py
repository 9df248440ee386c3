"""What the store knows of a job beyond its row: attempts, workers, events, metrics, checkpoints.

Pages go forward in time by row id. ``events_after`` and ``metrics_after`` feed live streams: ids only grow, and a job's rows
become visible in that order, so a reader that goes on from the last id it saw misses nothing.
"""

from sqlalchemy import select

from service import cursors
from service.jobs import MAX_PAGE, find_job
from service.models import Attempt, Checkpoint, Event, Metric, Worker
from service.store import Store
from service.views import AttemptView, CheckpointView, EventView, MetricView, Page, WorkerView


class History:
    """Every method raises ``JobNotFound``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def attempts(self, job_id: str) -> list[AttemptView]:
        """Oldest first."""
        with self._store.read() as session:
            find_job(session, job_id)
            rows = session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)).all()
        return [AttemptView.model_validate(row) for row in rows]

    def workers(self, job_id: str, attempt: int | None = None) -> list[WorkerView]:
        """By attempt, generation and rank; of one attempt when it is given."""
        query = select(Worker).where(Worker.job_id == job_id)
        if attempt is not None:
            query = query.where(Worker.attempt == attempt)
        with self._store.read() as session:
            find_job(session, job_id)
            rows = session.scalars(query.order_by(Worker.attempt, Worker.generation, Worker.rank)).all()
        return [WorkerView.model_validate(row) for row in rows]

    def checkpoints(self, job_id: str) -> list[CheckpointView]:
        """By step."""
        with self._store.read() as session:
            find_job(session, job_id)
            rows = session.scalars(select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step)).all()
        return [CheckpointView.model_validate(row) for row in rows]

    def events(self, job_id: str, *, cursor: str | None = None, limit: int = 200) -> Page[EventView]:
        """Oldest first. Raises ``InvalidCursor``."""
        after = cursors.decode("events", cursor) if cursor is not None else 0
        limit = max(1, min(limit, MAX_PAGE))
        rows = self.events_after(job_id, after, limit + 1)
        more = cursors.encode("events", rows[limit - 1].id) if len(rows) > limit else None
        return Page[EventView](items=rows[:limit], next_cursor=more)

    def metrics(self, job_id: str, *, cursor: str | None = None, limit: int = 1000) -> Page[MetricView]:
        """In the order of writing: by step, but for steps that were done again. Raises ``InvalidCursor``."""
        after = cursors.decode("metrics", cursor) if cursor is not None else 0
        limit = max(1, min(limit, MAX_PAGE))
        rows = self.metrics_after(job_id, after, limit + 1)
        more = cursors.encode("metrics", rows[limit - 1].id) if len(rows) > limit else None
        return Page[MetricView](items=rows[:limit], next_cursor=more)

    def events_after(self, job_id: str, after: int, limit: int = MAX_PAGE) -> list[EventView]:
        """Events with an id above ``after``."""
        query = select(Event).where(Event.job_id == job_id, Event.id > after).order_by(Event.id).limit(limit)
        with self._store.read() as session:
            find_job(session, job_id)
            return [EventView.model_validate(row) for row in session.scalars(query)]

    def metrics_after(self, job_id: str, after: int, limit: int = MAX_PAGE) -> list[MetricView]:
        """Figures with an id above ``after``."""
        query = select(Metric).where(Metric.job_id == job_id, Metric.id > after).order_by(Metric.id).limit(limit)
        with self._store.read() as session:
            find_job(session, job_id)
            return [_metric_view(row) for row in session.scalars(query)]


def _metric_view(row: Metric) -> MetricView:
    return MetricView.model_validate(
        {
            "id": row.id,
            "attempt": row.attempt,
            "generation": row.generation,
            "step": row.step,
            "at": row.at,
            "values": {name: float(figure[0]) for name, figure in row.figures.items()},
        }
    )

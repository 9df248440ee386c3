"""What changes about one job, as it changes: polled by cursor, so a service that restarts in between costs a pause, no line."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from data.errors import MantaError
from service.states import FINAL
from service.views import EventView, JobView, MetricView

POLL_SECONDS = 1.0
"""A look costs both sides some milliseconds, on a small machine of the cores that train."""
GIVE_UP_SECONDS = 120.0
"""How long a service may be away before watching ends."""


class JobSource(Protocol):
    """The part of the API client that following a job needs. An error of status 503 says that the service is away just now."""

    def job(self, job_id: str) -> JobView: ...
    def events_after(self, job_id: str, after: int) -> Sequence[EventView]: ...
    def metrics_after(self, job_id: str, after: int) -> Sequence[MetricView]: ...


@dataclass(frozen=True)
class Update:
    """The job as it is, and what is new since the update before. ``away``: the service does not answer just now."""

    job: JobView
    events: tuple[EventView, ...] = ()
    metrics: tuple[MetricView, ...] = ()
    away: bool = False


def follow(source: JobSource, job_id: str, pause: Callable[[float], None]) -> Iterator[Update]:
    """Yield the job again and again until it has ended; its last update holds everything that came before its end.

    The job is read before its events and figures: whatever a final state follows has then been written.
    """
    job: JobView | None = None
    events_seen = metrics_seen = 0
    missed = 0.0
    while True:
        try:
            job = source.job(job_id)
            events = tuple(source.events_after(job_id, events_seen))
            metrics = tuple(source.metrics_after(job_id, metrics_seen))
        except MantaError as error:
            missed += POLL_SECONDS
            if error.status != 503 or missed >= GIVE_UP_SECONDS:
                raise
            if job is not None:
                yield Update(job=job, away=True)
        else:
            missed = 0.0
            events_seen = max([events_seen, *(event.id for event in events)])
            metrics_seen = max([metrics_seen, *(metric.id for metric in metrics)])
            yield Update(job=job, events=events, metrics=metrics)
            if job.state in FINAL:
                return
        pause(POLL_SECONDS)

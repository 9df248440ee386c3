"""Between the commands and the API client: which service, which job, and pages followed to their end."""

import re
from collections.abc import Iterator, Sequence

from api.cli.console import CommandError
from api.client import ApiProblem, Client
from api.settings import Settings
from service.views import EventView, JobView, MetricView

PAGE = 1000
_REFERENCE = re.compile(r"[a-z0-9-]{1,64}")


class NoSuchJob(CommandError):
    """No job has that id, name or beginning of an id."""

    code = "job_not_found"
    status = 404


class AmbiguousJob(CommandError):
    """The beginning of more than one job's id."""

    code = "job_ambiguous"
    status = 409


def connect(url: str | None) -> Client:
    """The service at ``url`` (``--url`` or MANTA_URL), else the one of this home. Raises ServiceUnavailable without one."""
    settings = Settings.read()
    if url is None:
        return Client.discover(settings)
    return Client(url, settings.token.get_secret_value() if settings.token else None)


def find(client: Client, reference: str) -> JobView:
    """A job by id, by name (the newest that has it) or by the beginning of its id. Raises NoSuchJob, AmbiguousJob."""
    if not _REFERENCE.fullmatch(reference):
        raise NoSuchJob(f"{reference!r} is neither a job's id nor its name")
    try:
        return client.get(reference)
    except ApiProblem as problem:
        if problem.status != 404:
            raise
    named = client.list(name=reference, limit=1).items
    if named:
        return named[0]
    begin = [job for job in _every_job(client) if job.id.startswith(reference)]
    if len(begin) > 1:
        raise AmbiguousJob(f"{reference!r} begins the ids of {len(begin)} jobs: {', '.join(job.id for job in begin[:5])}")
    if not begin:
        raise NoSuchJob(f"there is no job {reference!r}; `manta list` shows them")
    return begin[0]


def _every_job(client: Client) -> Iterator[JobView]:
    cursor = None
    while True:
        page = client.list(cursor=cursor, limit=PAGE)
        yield from page.items
        cursor = page.next_cursor
        if cursor is None:
            return


class ClientSource:
    """What following a job reads, out of the client's pages."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def job(self, job_id: str) -> JobView:
        return self._client.get(job_id)

    def events_after(self, job_id: str, after: int) -> Sequence[EventView]:
        found: list[EventView] = []
        while True:
            page = self._client.events(job_id, after=after, limit=PAGE)
            found.extend(page.items)
            if page.next_cursor is None or not page.items:
                return found
            after = page.items[-1].id

    def metrics_after(self, job_id: str, after: int) -> Sequence[MetricView]:
        found: list[MetricView] = []
        while True:
            page = self._client.metrics(job_id, after=after, limit=PAGE)
            found.extend(page.items)
            if page.next_cursor is None or not page.items:
                return found
            after = page.items[-1].id


def every_event(client: Client, job_id: str) -> Sequence[EventView]:
    """All events of a job, oldest first."""
    return ClientSource(client).events_after(job_id, 0)

"""Manta's Python client: the REST API, typed with the service's own views. Streams outlive a restart of the service."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import TypeAdapter

from api.logs import LogLine
from api.problem import FieldProblem
from api.settings import Settings
from data.errors import MantaError
from service.studies import StudyView
from service.views import AttemptView, CheckpointView, EventView, JobView, MetricView, Page, WorkerView
from tuning.views import TrialView

STREAM_READ_SECONDS = 45.0
"""Three missed pings: a stream that is silent for so long is dead."""
GIVE_UP_SECONDS = 120.0
"""How long a stream tries to reach a service that went away."""
MAX_PAUSE_SECONDS = 5.0

Spec = Mapping[str, Any] | str | bytes
"""A job spec as a mapping, or as YAML or JSON text."""
Attempts = TypeAdapter(list[AttemptView])
Workers = TypeAdapter(list[WorkerView])
Checkpoints = TypeAdapter(list[CheckpointView])


class ApiProblem(MantaError):
    """The service refused; ``code``, ``status`` and ``errors`` are its own."""

    def __init__(self, status: int, code: str, detail: str, errors: Sequence[FieldProblem] = ()) -> None:
        super().__init__(detail, pointer=next((each.pointer for each in errors if each.pointer is not None), None))
        self.status = status  # type: ignore[misc]  # a class's own for every other error; here it is what was received
        self.code = code  # type: ignore[misc]
        self.errors = list(errors)


class ServiceUnavailable(MantaError):
    """No service answers at the address."""

    code = "service_unavailable"
    status = 503


class Client:
    """One service. Every method raises ``ApiProblem`` when it refuses and ``ServiceUnavailable`` when it does not answer."""

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        # The system's proxies are for the internet; a service on loopback or in the cluster is reached directly.
        self._http = httpx.Client(
            base_url=base_url, headers=headers, timeout=httpx.Timeout(30.0, connect=5.0), transport=transport, trust_env=False
        )
        self._pause = pause
        self.base_url = base_url

    @classmethod
    def discover(cls, settings: Settings | None = None) -> Self:
        """The service at ``MANTA_URL``, else the one that runs in this home. Raises ``ServiceUnavailable`` without one."""
        settings = settings or Settings.read()
        token = settings.token.get_secret_value() if settings.token else None
        if settings.url is not None:
            return cls(settings.url, token)
        try:
            record = json.loads(settings.service_file.read_bytes())
        except (FileNotFoundError, ValueError):
            raise ServiceUnavailable(
                f"no Manta runs in {settings.home}: start one with `manta up`, or set MANTA_URL to one elsewhere"
            ) from None
        return cls(record["url"], token)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- jobs --------------------------------------------------------------------------------------------------------------

    def submit(self, spec: Spec, *, idempotency_key: str | None = None) -> JobView:
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key is not None else {}
        return JobView.model_validate(self._send_spec("/jobs", spec, headers))

    def plan(self, spec: Spec) -> dict[str, Any]:
        """What the spec would run, without running it."""
        return dict(self._send_spec("/plan", spec, {}))

    def list(
        self,
        *,
        state: str | Sequence[str] | None = None,
        kind: str | None = None,
        name: str | None = None,
        parent: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Page[JobView]:
        """Newest first; ``parent``: the jobs of that study's trials."""
        states = [state] if isinstance(state, str) else _texts(state)
        query = {"state": states, "kind": kind, "name": name, "parent": parent, "cursor": cursor, "limit": limit}
        return Page[JobView].model_validate(self._get("/jobs", query))

    def get(self, job_id: str) -> JobView:
        return JobView.model_validate(self._get(f"/jobs/{job_id}"))

    def cancel(self, job_id: str) -> JobView:
        return self._act(job_id, "cancel")

    def pause(self, job_id: str) -> JobView:
        return self._act(job_id, "pause")

    def resume(self, job_id: str) -> JobView:
        return self._act(job_id, "resume")

    def retry(self, job_id: str) -> JobView:
        return self._act(job_id, "retry")

    def delete(self, job_id: str) -> None:
        self._request("DELETE", f"/jobs/{job_id}")

    # -- studies -----------------------------------------------------------------------------------------------------------

    def study(self, job_id: str) -> StudyView:
        return StudyView.model_validate(self._get(f"/studies/{job_id}"))

    def extend(self, job_id: str, **budget: float | None) -> JobView:
        """``trials, steps, seconds``: the study's new budget."""
        return JobView.model_validate(self._request("POST", f"/studies/{job_id}:extend", json=budget).json())

    def trials(self, job_id: str, *, cursor: str | None = None, limit: int | None = None) -> Page[TrialView]:
        """By number."""
        return Page[TrialView].model_validate(self._get(f"/studies/{job_id}/trials", {"cursor": cursor, "limit": limit}))

    def trial_job(self, job_id: str, number: int) -> dict[str, Any]:
        """The training job that a trial is."""
        return dict(self._get(f"/studies/{job_id}/trials/{number}/job"))

    def figure(self, job_id: str, name: str) -> dict[str, Any]:
        """Plotly's JSON."""
        return dict(self._get(f"/studies/{job_id}/figures/{name}"))

    def journal(self, job_id: str) -> "Sequence[dict[str, Any]]":
        """Optuna's journal of a study."""
        return [dict(line) for line in self._get(f"/studies/{job_id}/export")]

    # -- what became of a job ----------------------------------------------------------------------------------------------

    def attempts(self, job_id: str) -> "Sequence[AttemptView]":
        return Attempts.validate_python(self._get(f"/jobs/{job_id}/attempts"))

    def workers(self, job_id: str, attempt: int | None = None) -> "Sequence[WorkerView]":
        return Workers.validate_python(self._get(f"/jobs/{job_id}/workers", {"attempt": attempt}))

    def checkpoints(self, job_id: str) -> "Sequence[CheckpointView]":
        return Checkpoints.validate_python(self._get(f"/jobs/{job_id}/checkpoints"))

    def events(
        self, job_id: str, *, after: int | None = None, cursor: str | None = None, limit: int | None = None
    ) -> Page[EventView]:
        """Oldest first; ``after`` is the id of the last event that is known already."""
        return Page[EventView].model_validate(
            self._get(f"/jobs/{job_id}/events", {"after": after, "cursor": cursor, "limit": limit})
        )

    def metrics(
        self, job_id: str, *, after: int | None = None, cursor: str | None = None, limit: int | None = None
    ) -> Page[MetricView]:
        """In the order of writing."""
        return Page[MetricView].model_validate(
            self._get(f"/jobs/{job_id}/metrics", {"after": after, "cursor": cursor, "limit": limit})
        )

    # -- live --------------------------------------------------------------------------------------------------------------

    def stream_job(self, job_id: str) -> Iterator[JobView]:
        """The job, whenever something about it changed; the last is its final one."""
        for message in self._stream(f"/jobs/{job_id}/stream", {}, None):
            yield JobView.model_validate(message.json())

    def stream_events(self, job_id: str, *, after: int | None = None) -> Iterator[EventView]:
        for message in self._stream(f"/jobs/{job_id}/events/stream", {}, after):
            yield EventView.model_validate(message.json())

    def stream_metrics(self, job_id: str, *, after: int | None = None) -> Iterator[MetricView]:
        for message in self._stream(f"/jobs/{job_id}/metrics/stream", {}, after):
            yield MetricView.model_validate(message.json())

    def stream_logs(
        self,
        job_id: str,
        *,
        rank: int | None = None,
        attempt: int | None = None,
        follow: bool = True,
        position: str | None = None,
    ) -> Iterator[LogLine]:
        """Lines of the job's logs: of one rank (-1 is the driver) or of all, of one attempt or of all. ``follow`` goes on
        until the job has ended."""
        query = {"rank": rank, "attempt": attempt, "follow": follow}
        for message in self._stream(f"/jobs/{job_id}/logs", query, position):
            yield LogLine.model_validate(message.json())

    # -- the wire ----------------------------------------------------------------------------------------------------------

    def _act(self, job_id: str, verb: str) -> JobView:
        return JobView.model_validate(self._request("POST", f"/jobs/{job_id}:{verb}").json())

    def _get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        return self._request("GET", path, params=_query(query or {})).json()

    def _send_spec(self, path: str, spec: Spec, headers: dict[str, str]) -> Any:
        if isinstance(spec, Mapping):
            content, kind = json.dumps(spec).encode(), "application/json"
        else:
            content, kind = spec.encode() if isinstance(spec, str) else spec, "application/yaml"
        return self._request("POST", path, content=content, headers={"Content-Type": kind, **headers}).json()

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, f"/api/v1{path}", **options)
        except httpx.TransportError as error:
            raise ServiceUnavailable(
                f"Manta at {self.base_url} does not answer: {str(error) or type(error).__name__}"
            ) from error
        _raise_for(answer)
        return answer

    def _stream(self, path: str, query: Mapping[str, Any], last_id: str | int | None) -> "Iterator[Message]":
        """Messages until the ``end`` event, over as many connections as it takes; each goes on behind the last id seen."""
        waited, pause = 0.0, 0.25
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(last_id)} if last_id is not None else {})
            try:
                with self._http.stream(
                    "GET",
                    f"/api/v1{path}",
                    params=_query(query),
                    headers=headers,
                    timeout=httpx.Timeout(STREAM_READ_SECONDS, connect=5.0),
                ) as answer:
                    if not answer.is_success:
                        answer.read()
                        _raise_for(answer)
                    for message in parse_events(split_lines(answer.iter_bytes())):
                        waited, pause = 0.0, 0.25
                        if message.event == "end":
                            return
                        last_id = message.id or last_id
                        yield message
            except httpx.TransportError as error:
                if waited >= GIVE_UP_SECONDS:
                    raise ServiceUnavailable(
                        f"Manta at {self.base_url} went away: {str(error) or type(error).__name__}"
                    ) from error
            except ApiProblem as problem:
                if problem.status != httpx.codes.SERVICE_UNAVAILABLE or waited >= GIVE_UP_SECONDS:
                    raise
            self._pause(pause)
            waited, pause = waited + pause, min(2 * pause, MAX_PAUSE_SECONDS)


@dataclass(frozen=True)
class Message:
    """One server-sent event."""

    event: str
    data: str
    id: str | None

    def json(self) -> Any:
        return json.loads(self.data)


_LINE_END = re.compile(rb"\r\n|\n|\r")


def split_lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Lines of an event stream, ended by CRLF, LF or CR and by nothing else; one without its end is dropped.

    ``str.splitlines``, and so ``httpx.Response.iter_lines``, also breaks at U+2028, U+0085 and more, which are text here.
    """
    held = b""
    for chunk in chunks:
        held += chunk
        # A CR at the end may be half of a CRLF.
        whole = held.removesuffix(b"\r")
        *lines, rest = _LINE_END.split(whole)
        held = rest + held[len(whole) :]
        for line in lines:
            yield line.decode(errors="replace")


def parse_events(lines: Iterator[str]) -> Iterator[Message]:
    """Server-sent events (WHATWG HTML, 9.2.6) from decoded lines; one that breaks off before its blank line is dropped."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields['data']}\n{value}" if name == "data" and "data" in fields else value
            continue
        if "data" in fields:
            yield Message(fields.get("event", "message"), fields["data"], fields.get("id"))
        fields = {}


def _texts(value: Sequence[str] | None) -> Sequence[str] | None:
    return None if value is None else [str(each) for each in value]


def _query(query: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def _raise_for(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    try:
        body = answer.json()
        errors = [FieldProblem.model_validate(each) for each in body.get("errors", ())]
        raise ApiProblem(answer.status_code, str(body["code"]), str(body["detail"]), errors)
    except (ValueError, KeyError, AttributeError):
        detail = f"{answer.request.url} answered {answer.status_code}, and not as Manta does: is this its address?"
        raise ApiProblem(answer.status_code, "not_manta", detail) from None

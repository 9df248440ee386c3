"""What is done to every request: bodies are bounded, answers are counted."""

import time
from http import HTTPMethod

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = frozenset(HTTPMethod)
"""What a client makes up is no label: each would be a series for good."""


class BodyLimit:
    """413 for a body of more than ``limit`` bytes, whether or not it says its length."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise HTTPException(413, f"the body is larger than {self._limit} bytes")
            return message

        await self._app(scope, bounded, send)


class RequestMetrics:
    """Counts requests by route template (never by path: ids would make a series each) and times them to the first byte."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._requests = Counter("manta_http_requests", "Requests answered", ["method", "route", "status"], registry=registry)
        self._seconds = Histogram(
            "manta_http_first_byte_seconds", "Time to the answer's first byte", ["method", "route"], registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = _template(scope)
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._requests.labels(method, route, message["status"]).inc()
                self._seconds.labels(method, route).observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, counted)


def _template(scope: Scope) -> str:
    """The request's path with its parameters' names for their values; ``unknown`` where no route has matched."""
    if "endpoint" not in scope:
        return "unknown"
    names = {str(value): f"{{{name}}}" for name, value in scope.get("path_params", {}).items()}
    segments = (segment.partition(":") for segment in scope["path"].split("/"))
    return "/".join(names.get(head, head) + colon + tail for head, colon, tail in segments)

"""Every error as RFC 9457 ``application/problem+json``; its class owns status and code, nothing here decides them."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from api.problem import MEDIA_TYPE, FieldProblem, Problem
from data.errors import MantaError

log = logging.getLogger(__name__)
RETRY_AFTER_SECONDS = 5


class ProblemResponse(JSONResponse):
    media_type = MEDIA_TYPE


def problem(
    status: int, code: str, detail: str, errors: Sequence[Any] = (), headers: dict[str, str] | None = None
) -> ProblemResponse:
    """The response for one error; ``errors`` holds mappings, dataclasses or models with ``FieldProblem``'s fields."""
    title = HTTPStatus(status).phrase
    fields = [FieldProblem.model_validate(_mapping(entry)) for entry in errors]
    body = Problem(type=f"urn:manta:problem:{code}", title=title, status=status, detail=detail, code=code, errors=fields)
    if status == HTTPStatus.UNAUTHORIZED:
        headers = {"WWW-Authenticate": "Bearer", **(headers or {})}
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS), **(headers or {})}
    return ProblemResponse(body.model_dump(exclude_none=True), status_code=status, headers=headers)


def manta_problem(error: MantaError, headers: dict[str, str] | None = None) -> ProblemResponse:
    """The response for an error that its class describes."""
    errors: Sequence[Any] = getattr(error, "errors", ())
    if not errors and error.pointer is not None:
        errors = [{"pointer": error.pointer, "detail": error.detail}]
    return problem(error.status, error.code, error.detail, errors, headers)


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` as a problem."""

    @app.exception_handler(MantaError)
    def of_manta(_: Request, error: MantaError) -> ProblemResponse:
        return manta_problem(error)

    @app.exception_handler(RequestValidationError)
    def of_request(_: Request, error: RequestValidationError) -> ProblemResponse:
        fields = [_request_field(entry) for entry in error.errors()]
        detail = "; ".join(f"{each.get('parameter') or each.get('pointer')}: {each['detail']}" for each in fields)
        return problem(422, "request_invalid", detail, fields)

    @app.exception_handler(HTTPException)
    def of_http(request: Request, error: HTTPException) -> ProblemResponse:
        known = {
            404: ("not_found", f"there is nothing at {request.url.path}"),
            413: ("body_too_large", str(error.detail)),
            405: ("method_not_allowed", f"{request.method} is not possible at {request.url.path}"),
        }
        code, detail = known.get(error.status_code, (HTTPStatus(error.status_code).name.lower(), str(error.detail)))
        return problem(error.status_code, code, detail, headers=dict(error.headers or {}))

    @app.exception_handler(OperationalError)
    def of_store(request: Request, error: OperationalError) -> ProblemResponse:
        log.error("the store does not answer: %s %s: %s", request.method, request.url.path, error.orig)
        return problem(503, "store_unavailable", "the store does not answer; nothing was changed, try again")

    @app.exception_handler(Exception)
    def of_bug(request: Request, error: Exception) -> ProblemResponse:
        # Starlette raises it again after this answer, so that the server logs the whole traceback. The client gets none of it.
        return problem(500, "internal_error", "Manta failed at this request; its log says where")


def _request_field(entry: Any) -> dict[str, Any]:
    where, *path = entry["loc"]
    detail = str(entry["msg"]).removeprefix("Value error, ")
    if where == "body":
        return {"pointer": "".join(f"/{_escape(str(part))}" for part in path), "detail": detail}
    return {"parameter": str(path[0]) if path else str(where), "detail": detail}


def _escape(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")


def _mapping(entry: Any) -> Any:
    if is_dataclass(entry) and not isinstance(entry, type):
        return asdict(entry)
    return entry.model_dump() if isinstance(entry, BaseModel) else entry

"""What OpenAPI says beyond the signatures: the job spec in YAML or JSON with examples, and errors as problems."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.problem import MEDIA_TYPE, Problem
from service.spec import JOB_SPEC
from service.views import JobView

SPEC_NAME = "JobSpec"
_REF = "#/components/schemas/{model}"
_QUICK = {
    "name": "quickstart",
    "data_pipeline": {"sources": [{"path": "stdlib:prose", "weight": 0.5}, {"path": "stdlib:code", "weight": 0.5}]},
    "training": {"tokens": 650_000, "global_batch_size": 32},
    "parallel_strategy": {"data_parallel": 2},
}
_QUICK_YAML = """\
name: quickstart
data_pipeline:
  sources:
    - {path: stdlib:prose, weight: 0.5}
    - {path: stdlib:code, weight: 0.5}
training: {tokens: 650_000, global_batch_size: 32}
parallel_strategy: {data_parallel: 2}
"""
_MEANINGS = {
    401: "No bearer token, or a wrong one",
    403: "A page of another site asks",
    404: "There is no such job",
    409: "Not in the state that it is in",
    413: "The body is too large",
    422: "A field, parameter or header is wrong; `errors` has one entry each",
    429: "Too many unfinished jobs",
    503: "The store or the cluster does not answer",
}

JOB_EXAMPLE: dict[str, Any] = {
    "id": "k3v9q1x7",
    "name": "quickstart",
    "kind": "train",
    "parent": None,
    "trial": None,
    "state": "running",
    "desired": "running",
    "reason": None,
    "why_pending": None,
    "attempt": 1,
    "restarts": 0,
    "progress": [
        {"phase": "documents", "done": 24, "total": 24, "unit": "documents", "reused": True, "rate": None, "eta_seconds": None},
        {"phase": "training", "done": 40, "total": 80, "unit": "steps", "reused": False, "rate": 1.2, "eta_seconds": 33.0},
    ],
    "step": 40,
    "total_steps": 80,
    "failure": None,
    "result": None,
    "created_at": "2026-03-01T12:00:00Z",
    "started_at": "2026-03-01T12:00:02Z",
    "ended_at": None,
    "spec": _QUICK,
}
PROBLEM_EXAMPLE: dict[str, Any] = {
    "type": "urn:manta:problem:spec_invalid",
    "title": "Unprocessable Entity",
    "status": 422,
    "detail": "/modle: unknown field",
    "code": "spec_invalid",
    "errors": [{"pointer": "/modle", "detail": "unknown field", "suggestion": "model"}],
}
_LOCATION = {"Location": {"description": "Where the job is.", "schema": {"type": "string"}}}
SUBMITTED: dict[int | str, dict[str, Any]] = {
    201: {"description": "The job that was made", "headers": _LOCATION},
    200: {
        "description": "The job that an earlier request with this `Idempotency-Key` made",
        "model": JobView,
        "headers": {
            **_LOCATION,
            "Idempotency-Replayed": {"description": "Always `true`.", "schema": {"type": "string", "enum": ["true"]}},
        },
    },
}
"""``responses=`` of a submit that goes well."""

SPEC_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/yaml": {
                "schema": {"$ref": _REF.format(model=SPEC_NAME)},
                "examples": {"quickstart": {"summary": "Train on what every Python has", "value": _QUICK_YAML}},
            },
            "application/json": {
                "schema": {"$ref": _REF.format(model=SPEC_NAME)},
                "examples": {
                    "quickstart": {"summary": "Train on what every Python has", "value": _QUICK},
                    "data": {"summary": "Prepare data and stop", "value": {"kind": "data", "name": "corpus"}},
                },
            },
        },
    }
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route that may answer with these problems."""
    content = {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Give ``app`` its OpenAPI document, made at the first request for it."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in ((SPEC_NAME, JOB_SPEC.json_schema(ref_template=_REF)), ("Problem", _problem_schema())):
                schemas |= schema.pop("$defs", {})
                schemas[name] = schema
            schemas["JobView"]["examples"] = [JOB_EXAMPLE]
            schemas["Problem"]["examples"] = [PROBLEM_EXAMPLE]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this as the way to extend it


def _problem_schema() -> dict[str, Any]:
    return Problem.model_json_schema(ref_template=_REF)

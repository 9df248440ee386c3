"""For those who run the service: is it alive, can it take jobs, what does it count."""

import logging
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from api import docs
from api.auth import may_see_details, require_token
from api.services import Services, Use

router = APIRouter(tags=["system"])
log = logging.getLogger(__name__)
WITHHELD = "not ok; with the token this says why"


class Alive(BaseModel):
    status: str = "ok"


class Ready(BaseModel):
    """``checks`` says ``ok`` or what is wrong, by part; to who may not use the service, only that something is."""

    ready: bool
    checks: dict[str, str]


@router.get("/healthz", operation_id="healthz")
def healthz() -> Alive:
    """The process answers."""
    return Alive()


@router.get("/readyz", operation_id="readyz", responses={503: {"model": Ready, "description": "Not yet, or no longer"}})
def readyz(use: Use, response: Response, details: Annotated[bool, Depends(may_see_details)]) -> Ready:
    """The store answers, the supervisor lives, the cluster takes jobs."""
    parts: dict[str, Callable[[Services], str]] = {"store": _store, "supervisor": _supervisor, "cluster": _cluster}
    checks = {name: check(use) for name, check in parts.items()}
    ready = all(state == "ok" for state in checks.values())
    if not ready:
        response.status_code = 503
    if not details:
        checks = {name: state if state == "ok" else WITHHELD for name, state in checks.items()}
    return Ready(ready=ready, checks=checks)


@router.get(
    "/metrics",
    operation_id="metrics",
    dependencies=[Depends(require_token)],
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **docs.problems(401)},
)
def metrics(use: Use) -> Response:
    """Prometheus: jobs by state, the supervisor's last look, reports, requests."""
    return Response(generate_latest(use.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _store(use: Services) -> str:
    try:
        use.store.ping()
    except SQLAlchemyError as error:
        log.warning("the store does not answer: %s", error)
        return "does not answer"
    return "ok"


def _supervisor(use: Services) -> str:
    return "ok" if use.supervision.alive() else "has stopped; the log says why"


def _cluster(use: Services) -> str:
    return use.cluster_check()

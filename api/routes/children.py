"""Trials that are jobs: what a study's driver asks for. The bearer token is its attempt's own, not the user's."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from api import docs
from api.auth import attempt_token
from api.services import JobId, Use
from tuning.views import ChildView

router = APIRouter(prefix="/jobs/{job_id}/attempts/{attempt}/children", tags=["children"], responses=docs.problems(401, 409))

Attempt = Annotated[int, Path(ge=1, le=2**31)]
Trial = Annotated[int, Path(ge=0, le=2**31)]
Token = Annotated[str, Depends(attempt_token)]


class Kept(BaseModel):
    model_config = ConfigDict(extra="forbid")

    trials: list[Annotated[int, Field(ge=0)]]


@router.put("/{trial}", operation_id="beginTrial", responses=docs.problems(413, 422))
def begin(job_id: JobId, attempt: Attempt, trial: Trial, job: dict[str, Any], use: Use, token: Token) -> ChildView:
    """The training job of a trial (a spec without `name` and `kind`): made, or found and queued again where its study had
    paused or cancelled it. 409 `illegal_transition`: the study is not to run."""
    return use.children.begin(job_id, attempt, token, trial, job)


@router.get("/{trial}", operation_id="getTrialsJob", responses=docs.problems(404, 422))
def look(
    job_id: JobId,
    attempt: Attempt,
    trial: Trial,
    use: Use,
    token: Token,
    after: Annotated[int, Query(ge=0, lt=2**63, description="Only figures with an id above this one.")] = 0,
) -> ChildView:
    """Its state, and what it has measured since."""
    return use.children.look(job_id, attempt, token, trial, after)


@router.post("/{trial}:cancel", operation_id="cancelTrial", status_code=204, responses=docs.problems(404))
def cancel(job_id: JobId, attempt: Attempt, trial: Trial, use: Use, token: Token) -> None:
    """End a trial's job. One that has ended is left as it is."""
    use.children.cancel(job_id, attempt, token, trial)


@router.post(":keep", operation_id="keepTrials", status_code=204, responses=docs.problems(422))
def keep(job_id: JobId, attempt: Attempt, kept: Kept, use: Use, token: Token) -> None:
    """End the jobs of all other trials."""
    use.children.keep(job_id, attempt, token, kept.trials)

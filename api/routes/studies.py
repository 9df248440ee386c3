"""Studies: jobs of kind `tune`, with their trials. What is done to jobs is done to studies by the same words."""

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from api import docs
from api.routes.jobs import Cursor, Key, Limit, read_spec, say_created
from api.services import JobId, Use
from service.journal import Line
from service.spec import TuneJob
from service.studies import StudyView
from service.validation import FieldError, SpecInvalid
from service.views import JobView, Page
from tuning.views import TrialView


class BudgetChange(BaseModel):
    """What is given replaces what the study had."""

    model_config = ConfigDict(extra="forbid")

    trials: int | None = None
    steps: int | None = None
    seconds: float | None = None


router = APIRouter(prefix="/studies", tags=["studies"])


@router.post(
    "",
    operation_id="createStudy",
    status_code=201,
    openapi_extra=docs.SPEC_BODY,
    responses=docs.SUBMITTED | docs.problems(409, 413, 422, 429),
)
async def create(request: Request, response: Response, use: Use, idempotency_key: Key = None) -> JobView:
    """Submit a job of kind `tune`. 201 with the job; 200 if the `Idempotency-Key` had made it before."""
    spec = await read_spec(request)
    if not isinstance(spec, TuneJob):
        raise SpecInvalid([FieldError("/kind", f"a study is of kind tune, not {spec.kind}", "tune")])
    created = await to_thread.run_sync(lambda: use.jobs.create(spec, idempotency_key=idempotency_key))
    return say_created(created, response)


@router.get("", operation_id="listStudies", responses=docs.problems(422))
def list_studies(
    use: Use, name: Annotated[str | None, Query(max_length=64)] = None, cursor: Cursor = None, limit: Limit = 50
) -> Page[JobView]:
    """Newest first."""
    return use.jobs.list(kind="tune", name=name, cursor=cursor, limit=limit)


@router.get("/{job_id}", operation_id="getStudy", responses=docs.problems(404))
def get(job_id: JobId, use: Use) -> StudyView:
    """The job, its best trial or Pareto front, what was spent and saved, and which parameters matter."""
    return use.studies.get(job_id)


@router.get("/{job_id}/trials", operation_id="listTrials", responses=docs.problems(404, 422))
def trials(job_id: JobId, use: Use, cursor: Cursor = None, limit: Limit = 200) -> Page[TrialView]:
    """By number."""
    return use.studies.trials(job_id, cursor=cursor, limit=limit)


@router.get("/{job_id}/best", operation_id="getBestTrials", responses=docs.problems(404))
def best(job_id: JobId, use: Use) -> list[TrialView]:
    """The best feasible trial; of several objectives, the Pareto front. Empty while there is none."""
    return use.studies.best(job_id)


@router.get("/{job_id}/trials/{number}/job", operation_id="getTrialJob", responses=docs.problems(404))
def trial_job(job_id: JobId, number: Annotated[int, Path(ge=0, lt=2**31)], use: Use) -> dict[str, Any]:
    """The training job that a trial is, as a user would write it."""
    return use.studies.job_of(job_id, number)


@router.get("/{job_id}/figures/{name}", operation_id="getFigure", responses=docs.problems(404, 409))
def figure(job_id: JobId, name: Annotated[str, Path(max_length=64)], use: Use) -> dict[str, Any]:
    """Optuna's own figure as Plotly's JSON: `history, importances, parallel, slice, intermediate, timeline, pareto`."""
    return use.studies.figure(job_id, name)


@router.get("/{job_id}/export", operation_id="exportStudy", responses=docs.problems(404))
def export(job_id: JobId, use: Use) -> list[Line]:
    """The study's journal, which Optuna's `JournalStorage` reads."""
    return use.studies.journal(job_id)


@router.post("/{job_id}:pause", operation_id="pauseStudy", responses=docs.problems(404, 409))
def pause(job_id: JobId, use: Use) -> JobView:
    """End the attempt; running trials go on from their checkpoints later."""
    use.studies.require(job_id)
    return use.jobs.pause(job_id)


@router.post("/{job_id}:resume", operation_id="resumeStudy", responses=docs.problems(404, 409))
def resume(job_id: JobId, use: Use) -> JobView:
    use.studies.require(job_id)
    return use.jobs.resume(job_id)


@router.post("/{job_id}:extend", operation_id="extendStudy", responses=docs.problems(404, 409, 422))
def extend(job_id: JobId, budget: BudgetChange, use: Use) -> JobView:
    """Give a study that has ended, or is paused, a larger budget. One that has ended is queued again; a population that has
    ended, whose members have trained to their end, takes no more (409 `population_ended`)."""
    return use.studies.extend(job_id, budget.model_dump(exclude_unset=True))


@router.post("/{job_id}:cancel", operation_id="cancelStudy", responses=docs.problems(404, 409))
def cancel(job_id: JobId, use: Use) -> JobView:
    """End the study. Its trials and their checkpoints stay."""
    use.studies.require(job_id)
    return use.jobs.cancel(job_id)

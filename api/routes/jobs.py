"""Jobs: submit, look, and say what is wanted of them."""

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request, Response

from api import docs
from api.services import JobId, Use
from service.jobs import Created
from service.spec import AnyJob, TrainJob
from service.states import JobState
from service.validation import parse_spec
from service.views import JobView, Page
from workers.plan import describe

router = APIRouter(tags=["jobs"])

Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.", max_length=512)]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Submitting again with the same key and spec gives the same job; with another spec, 409.",
    ),
]


async def read_spec(request: Request) -> AnyJob:
    body = await request.body()
    return await to_thread.run_sync(parse_spec, body, request.headers.get("content-type"))


@router.post(
    "/jobs",
    operation_id="submitJob",
    status_code=201,
    openapi_extra=docs.SPEC_BODY,
    responses=docs.SUBMITTED | docs.problems(409, 413, 422, 429),
)
async def submit(request: Request, response: Response, use: Use, idempotency_key: Key = None) -> JobView:
    """Submit a job. 201 with the job; 200 if the `Idempotency-Key` had made it before."""
    spec = await read_spec(request)
    created = await to_thread.run_sync(lambda: use.jobs.create(spec, idempotency_key=idempotency_key))
    return say_created(created, response)


def say_created(created: Created, response: Response) -> JobView:
    response.headers["Location"] = f"/api/v1/jobs/{created.job.id}"
    if created.replayed:
        response.status_code = 200
        response.headers["Idempotency-Replayed"] = "true"
    return created.job


@router.post("/plan", operation_id="planJob", openapi_extra=docs.SPEC_BODY, responses=docs.problems(413, 422))
async def plan(request: Request) -> dict[str, Any]:
    """What a spec would run, without running it: the resolved spec, parameters, steps, tokens, memory per worker."""
    spec = await read_spec(request)
    return {"spec": spec.model_dump(mode="json")} | (describe(spec) if isinstance(spec, TrainJob) else {})


@router.get("/jobs", operation_id="listJobs", responses=docs.problems(422))
def list_jobs(
    use: Use,
    state: Annotated[list[JobState] | None, Query(description="Only jobs in this state; may be given more than once.")] = None,
    kind: Annotated[str | None, Query(max_length=64)] = None,
    name: Annotated[str | None, Query(max_length=64)] = None,
    parent: Annotated[str | None, Query(max_length=64, description="Only trials of the study of this id.")] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[JobView]:
    """Newest first."""
    return use.jobs.list(state=state, kind=kind, name=name, parent=parent, cursor=cursor, limit=limit)


@router.get("/jobs/{job_id}", operation_id="getJob", responses=docs.problems(404))
def get(job_id: JobId, use: Use) -> JobView:
    return use.jobs.get(job_id)


@router.delete("/jobs/{job_id}", operation_id="deleteJob", status_code=204, responses=docs.problems(404, 409))
def delete(job_id: JobId, use: Use) -> None:
    """Delete a job that has ended, with everything that it stored; a study with the jobs of its trials."""
    use.jobs.delete(job_id)


@router.post("/jobs/{job_id}:cancel", operation_id="cancelJob", responses=docs.problems(404, 409))
def cancel(job_id: JobId, use: Use) -> JobView:
    """End the job. Its checkpoints stay. Cancelling twice is no error."""
    return use.jobs.cancel(job_id)


@router.post("/jobs/{job_id}:pause", operation_id="pauseJob", responses=docs.problems(404, 409))
def pause(job_id: JobId, use: Use) -> JobView:
    """Checkpoint, then end the attempt and free its machines."""
    return use.jobs.pause(job_id)


@router.post("/jobs/{job_id}:resume", operation_id="resumeJob", responses=docs.problems(404, 409))
def resume(job_id: JobId, use: Use) -> JobView:
    """Go on with a paused job in a new attempt, from its newest checkpoint."""
    return use.jobs.resume(job_id)


@router.post("/jobs/{job_id}:retry", operation_id="retryJob", responses=docs.problems(404, 409))
def retry(job_id: JobId, use: Use) -> JobView:
    """Run a failed or cancelled job again from its newest checkpoint, with a fresh budget of attempts."""
    return use.jobs.retry(job_id)

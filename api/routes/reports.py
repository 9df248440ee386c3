"""Where attempts report. The bearer token is the attempt's own, not the user's."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from api import docs
from api.auth import attempt_token
from api.services import JobId, Use
from data.errors import MantaError
from workers.attempt import ReportAnswer, ReportBatch

router = APIRouter(tags=["reports"])


@router.post(
    "/jobs/{job_id}/attempts/{attempt}/reports", operation_id="report", responses=docs.problems(401, 404, 409, 413, 422)
)
def report(
    job_id: JobId,
    attempt: Annotated[int, Path(ge=1, le=2**31)],
    batch: ReportBatch,
    use: Use,
    token: Annotated[str, Depends(attempt_token)],
) -> ReportAnswer:
    """Store a batch of reports, all or none; sending one again changes nothing. 409 `stale_attempt`: stop."""
    try:
        answer = use.reports.ingest(job_id, attempt, token, batch)
    except MantaError as error:
        use.metrics.reports_refused.labels(error.code).inc()
        raise
    for each in batch.reports:
        use.metrics.reports.labels(each.kind).inc()
    return answer

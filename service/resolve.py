"""What a study refers to by name."""

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from data.errors import MantaError
from service.models import Job
from service.spec import TuneJob
from service.validation import FieldError, SpecInvalid


class StudyExists(MantaError):
    """Another study has that name."""

    code = "study_exists"
    status = 409


def require_free_name(session: Session, spec: TuneJob) -> None:
    """Raises ``StudyExists``."""
    taken = session.scalar(select(Job.id).where(Job.kind == "tune", Job.name == spec.name))
    if taken is not None:
        raise StudyExists(
            f"there is a study {spec.name} already ({taken}); choose another name, give that one more budget, or delete it",
            pointer="/name",
        )


def earlier_studies(session: Session, spec: TuneJob) -> tuple[str, ...]:
    """The ids of the studies that ``warm_start`` names; of several with one name, the newest.

    Raises ``SpecInvalid``: there is none of that name, or its trials say nothing of this study's points.
    """
    found = []
    for number, reference in enumerate(spec.warm_start):
        pointer = f"/warm_start/{number}"
        named = select(Job).where(Job.kind == "tune", or_(Job.id == reference, Job.name == reference))
        job = session.scalar(named.order_by(Job.number.desc()).limit(1))
        if job is None:
            raise SpecInvalid([FieldError(pointer, f"there is no study {reference}")])
        earlier = TuneJob.model_validate(job.spec)
        for field in ("space", "objectives"):
            if getattr(earlier, field) != getattr(spec, field):
                raise SpecInvalid([FieldError(pointer, f"study {reference} has another {field.removesuffix('s')}")])
        found.append(job.id)
    return tuple(found)

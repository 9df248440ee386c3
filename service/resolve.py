"""What a study refers to by name."""

import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from data.errors import MantaError
from service.models import Job
from service.spec import TuneJob
from service.validation import FieldError, SpecInvalid
from workers.spec import TrainSpec


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
        if difference := _other_base(earlier, spec):
            raise SpecInvalid([FieldError(pointer, f"study {reference} has another base: {difference}")])
        found.append(job.id)
    return tuple(found)


def _other_base(earlier: TuneJob, spec: TuneJob) -> str | None:
    """Where a point that both studies could try stands for a job that trains otherwise in the earlier one."""
    from tuning.space import JobSpace  # imports Optuna

    point = JobSpace(spec).base_point
    there, here = (_what_is_trained(study, JobSpace(study).document(point)) for study in (earlier, spec))
    return _difference(there, here)


def _what_is_trained(study: TuneJob, document: Mapping[str, Any]) -> dict[str, Any]:
    try:
        job = TrainSpec.model_validate(document)
    except ValidationError:  # moved into the space, this base is no job
        job = TrainSpec.model_validate(study.base.as_given())
    return job.model_dump(mode="json", exclude=_NO_MATTER)


_NO_MATTER: Any = {"checkpoint": True, "elastic": True, "monitoring": True, "training": {"eval_interval"}}
"""What may differ between trials that measure the same in the end."""


def _difference(there: Any, here: Any, path: str = "") -> str | None:
    if isinstance(there, dict) and isinstance(here, dict):
        inner = (_difference(there.get(name), here.get(name), f"{path}.{name}") for name in dict.fromkeys([*there, *here]))
        return next((found for found in inner if found), None)
    return None if there == here else f"{path.removeprefix('.')} is {reprlib.repr(there)} there and {reprlib.repr(here)} here"

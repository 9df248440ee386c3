"""The next point of a study: known ones first, then the sampler's; never one that is no job, nor one that was tried."""

from collections.abc import Iterator
from typing import ClassVar

from data.errors import MantaError
from tuning.asking import BASE, POINTS, Suggestion
from tuning.draws import random_point
from tuning.samplers import Exhausted, make_sampler
from tuning.space import JobSpace, Point, key
from tuning.spec import StudySpec
from tuning.study import Study

TRIES = 10
"""Of the sampler itself, which may ask for one impossible point again and again; then at random."""
RANDOM_TRIES = 1000


class NoValidPoint(MantaError):
    """No point that was drawn is a job."""

    code: ClassVar[str] = "space_infeasible"
    status: ClassVar[int] = 422


def known_points(space: JobSpace, spec: StudySpec) -> list[tuple[Point, str]]:
    """``base`` and the points that the study names, with where they are from; those that are no job are left out."""
    named = [(space.base_point, BASE), *((space.complete(point), POINTS) for point in spec.points)]
    points: list[tuple[Point, str]] = []
    for point, origin in named:
        if reason_against(space, point) is None and not any(key(point) == key(other) for other, _ in points):
            points.append((point, origin))
    return points


def next_point(study: Study) -> Suggestion:
    """
    Raises:
        Exhausted: there is no point left.
        NoValidPoint: constraints leave nothing that chance would find.
    """
    tried = {key(study.space.decode(trial.params)) for trial in study.trials}
    for point, origin in known_points(study.space, study.spec):
        if key(point) not in tried:
            return Suggestion(point, origin)
    refusal = ""
    for suggestion in _suggestions(study):
        if key(suggestion.point) in tried:
            continue
        found = reason_against(study.space, suggestion.point)
        if found is None:
            return suggestion
        refusal = found
    if refusal:
        raise NoValidPoint(
            f"none of {RANDOM_TRIES} points drawn from the space is a job that was not tried; the last: {refusal}",
            pointer="/space",
        )
    raise Exhausted


def _suggestions(study: Study) -> Iterator[Suggestion]:
    number = len(study.trials)
    sampler = make_sampler(study.spec, study.space)
    for attempt in range(TRIES):
        yield sampler(study.trials, number, attempt)
    for attempt in range(RANDOM_TRIES):
        yield Suggestion(random_point(study.space, study.spec.seed, number, attempt), "random")


def reason_against(space: JobSpace, point: Point) -> str | None:
    try:
        space.job(point)
    except ValueError as error:
        return str(error)
    return None

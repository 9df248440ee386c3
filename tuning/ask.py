"""The next point of a study: known ones first, then the sampler's; never one that is no job, nor one that was tried."""

from collections.abc import Iterator
from typing import ClassVar

from data.errors import MantaError
from tuning.asking import BASE, POINTS, Suggestion
from tuning.draws import grid, random_point
from tuning.samplers import Exhausted, make_sampler
from tuning.space import key
from tuning.study import SAMPLER, Study

TRIES = 10
"""Of the sampler itself, which may ask for one impossible point again and again; then at random."""
RANDOM_TRIES = 1000


class NoValidPoint(MantaError):
    """No point that was drawn is a job, and none was before: the search cannot begin."""

    code: ClassVar[str] = "space_infeasible"
    status: ClassVar[int] = 422


def next_point(study: Study) -> Suggestion:
    """
    Raises:
        Exhausted, NoValidPoint.
    """
    space, tried = study.space, study.tried
    for name, point in space.known_points.items():
        if name not in tried:
            return Suggestion(point, BASE if name == key(space.base_point) else POINTS)
    refused, refusal = 0, ""
    for suggestion in _suggestions(study):
        if key(suggestion.point) in tried:
            continue
        found = space.reason_against(suggestion.point)
        if found is None:
            return suggestion
        refused, refusal = refused + 1, found
    if refused and all(trial.user_attrs[SAMPLER] == BASE for trial in study.own):
        raise NoValidPoint(
            f"none of {refused} points drawn from the space is a job; why the last is not: {refusal}", pointer="/space"
        )
    raise Exhausted


def _suggestions(study: Study) -> Iterator[Suggestion]:
    if study.spec.sampler.type == "grid":
        yield from (Suggestion(point, "grid") for point in grid(study.space, study.spec.seed))
        return
    trials = study.trials
    sampler = make_sampler(study.spec, study.space)
    for attempt in range(TRIES):
        yield sampler(trials, len(trials), attempt)
    for attempt in range(RANDOM_TRIES):
        yield Suggestion(random_point(study.space, study.spec.seed, len(trials), attempt), "random")

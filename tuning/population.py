"""Population-based training (Jaderberg et al., arXiv 1711.09846): who takes over from whom at an exploit step, and with which
point. Pure: it follows from what the members measured, and from the study's seed.

All members train to one step and are compared there, so it matters neither how many train at once nor which is faster.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuning.asking import seed_of
from tuning.draws import at_quantile
from tuning.parameters import ChoiceParameter, Parameter, same
from tuning.scheduler import Curve
from tuning.space import Point
from tuning.spec import PopulationScheduler
from tuning.study import Study

FACTORS = (0.8, 1.2)
"""A number is multiplied by one of them."""
TRIES = 100
"""At a point that is a job; then the parent's own."""


@dataclass(frozen=True)
class Member:
    """The trial that trains in one of the population's places."""

    place: int
    number: int
    curve: Curve
    failed: bool


@dataclass(frozen=True)
class Exploit:
    """The trial of ``place`` ends, and another goes on there with the weights of ``parent``."""

    place: int
    number: int
    """Of the trial that ends, or has failed."""
    parent: int


def exploits(members: Sequence[Member], step: int, scheduler: PopulationScheduler, minimize: bool, seed: int) -> list[Exploit]:
    """At ``step``: each member of the lowest quantile, and each that failed, takes over from one of the top quantile, drawn at
    random. One that measured no number there is as the worst."""
    sign = 1.0 if minimize else -1.0
    measured = sorted((each for each in members if step in each.curve), key=lambda each: (sign * each.curve[step], each.number))
    ranked = [*measured, *(each for each in members if step not in each.curve)]
    count = max(1, int(scheduler.quantile * len(ranked)))
    top = measured[:count]
    low = [each for each in ranked if each not in top and (each in ranked[-count:] or each.failed)]
    if not top:
        return []
    found = []
    for each in sorted(low, key=lambda member: member.place):
        parent = random.Random(seed_of(seed, "exploit", each.number, step)).choice(top)
        found.append(Exploit(each.place, each.number, parent.number))
    return found


def explore(study: Study, point: Mapping[str, object], scheduler: PopulationScheduler, number: int, step: int) -> Point:
    """A point near ``point``, the parent's, for the place whose trial ``number`` ends at ``step``. One that is no job, or that
    constraints do not let through, is drawn again."""
    space = study.space
    for attempt in range(TRIES):
        draw = random.Random(seed_of(study.spec.seed, "explore", number, step, attempt))
        found: Point = {}
        for path, parameter in space.parameters.items():
            if not space.applies(path, found):
                continue
            if path not in point or draw.random() < scheduler.resample_probability:
                found[path] = at_quantile(parameter, draw.random())
            else:
                found[path] = _neighbour(parameter, point[path], draw)
        try:
            space.job(found)
        except ValueError:
            continue
        return found
    return dict(point)


def _neighbour(parameter: Parameter, value: object, draw: random.Random) -> object:
    """The choice before or behind, or the number times one of ``FACTORS``, within its range; where there are steps, at least
    one away."""
    up = draw.random() < 0.5
    if isinstance(parameter, ChoiceParameter):
        place = next(i for i, choice in enumerate(parameter.choices) if same(choice, value))
        return parameter.choices[min(max(place + (1 if up else -1), 0), len(parameter.choices) - 1)]
    assert isinstance(value, int | float)
    found = parameter.nearest(value * FACTORS[up])
    if found == value and parameter.step is not None:
        return parameter.nearest(value + (parameter.step if up else -parameter.step))
    return found

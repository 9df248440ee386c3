"""Points without a model: at random, spread evenly, all of a grid. Each is a function of (seed, number)."""

import math
import random
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import optuna

from tuning.asking import asked, seed_of
from tuning.parameters import ChoiceParameter, Parameter
from tuning.space import Point, Space


def random_point(space: Space, seed: int, number: int, attempt: int) -> Point:
    return asked(optuna.samplers.RandomSampler(seed=seed_of(seed, number, attempt)), ["minimize"], space, []).point


@lru_cache(maxsize=1)  # a study asks for its own again and again
def grid(space: Space, seed: int) -> Sequence[Point]:
    """Every point, in a random order, so that a part of the grid is spread over all of it."""
    points = list(combinations(space, list(space.parameters)))
    random.Random(seed).shuffle(points)
    return points


def combinations(space: Space, paths: Sequence[str], point: Point | None = None) -> Iterator[Point]:
    """Of the values of some parameters, each where it applies.

    Args:
        paths: without a range that has no step; parameters come after those that they depend on.
        point: what is decided already.
    """
    point = point or {}
    if not paths:
        yield point
    elif not space.applies(paths[0], point):
        yield from combinations(space, paths[1:], point)
    else:
        for value in space.parameters[paths[0]].values():
            yield from combinations(space, paths[1:], {**point, paths[0]: value})


def quasi_random(space: Space, seed: int, index: int) -> Point:
    """Point ``index`` of a scrambled Sobol sequence (Owen 1998); parameters that do not apply have a place in it too."""
    from scipy.stats import qmc  # takes longer to import than the service needs to start

    sequence = qmc.Sobol(len(space.parameters), rng=seed_of(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # balance holds for powers of two; a study stops where it will
        unit = sequence.fast_forward(index).random(1)[0] if index else sequence.random(1)[0]
    point: Point = {}
    for (path, parameter), u in zip(space.parameters.items(), unit.tolist(), strict=True):
        if space.applies(path, point):
            point[path] = at_quantile(parameter, u)
    return point


def at_quantile(parameter: Parameter, u: float) -> Any:
    """The value at a quantile of a parameter's range, 0 <= u < 1."""
    if isinstance(parameter, ChoiceParameter):
        return parameter.choices[int(u * len(parameter.choices))]
    low, high = parameter.low, parameter.high
    if parameter.log:
        return parameter.nearest(math.exp(math.log(low) + u * (math.log(high) - math.log(low))))
    if parameter.count is None:
        return low + u * (high - low)
    return parameter.at(math.floor(u * parameter.count))

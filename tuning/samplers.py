"""From the trials so far to the next point: Optuna's samplers, made anew for every ask and seeded by (study, trial, attempt).

Nothing is kept between asks, so whoever goes on with a study asks the same.
"""

import math
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from tuning.asking import Suggestion, asked, seed_of
from tuning.parameters import ChoiceParameter, Parameter
from tuning.space import Point, Space, key
from tuning.spec import SamplerName, StudySpec


class Exhausted(Exception):
    """Every point of the space was tried."""


Sampler = Callable[[Sequence[FrozenTrial], int, int], Suggestion]
"""(trials, number of the trial to begin, attempt at it) -> suggestion."""


def make_sampler(spec: StudySpec, space: Space) -> Sampler:
    name = choose(spec, space)[0] if spec.sampler.type == "auto" else spec.sampler.type
    if name == "grid":
        points = grid(space, spec.seed)
        return lambda trials, number, attempt: Suggestion(_untried(points, space, trials), "grid")
    if name == "bandit":
        return lambda trials, number, attempt: _ask(_arm(spec, trials, number), spec, space, trials, number, attempt)
    return lambda trials, number, attempt: _ask(name, spec, space, trials, number, attempt)


def random_point(space: Space, seed: int, number: int, attempt: int) -> Point:
    return asked(optuna.samplers.RandomSampler(seed=seed_of(seed, number, attempt)), ["minimize"], space, []).point


def _ask(name: str, spec: StudySpec, space: Space, trials: Sequence[FrozenTrial], number: int, attempt: int) -> Suggestion:
    if name == "qmc":
        return Suggestion(_quasi_random(space, spec.seed, number + attempt), "qmc")
    sampler = _SAMPLERS[name](spec, seed_of(spec.seed, number, attempt))
    made = asked(sampler, [each.direction for each in spec.objectives], space, trials)
    return Suggestion(made.point, name, made.system)


def _startup(spec: StudySpec, default: int) -> int:
    return default if spec.sampler.startup_trials is None else spec.sampler.startup_trials


_SAMPLERS: dict[str, Callable[[StudySpec, int], BaseSampler]] = {
    "gp": lambda spec, seed: optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=_startup(spec, 10), warn_independent_sampling=False
    ),
    "tpe": lambda spec, seed: optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=_startup(spec, 10), multivariate=True, group=True
    ),
    "cmaes": lambda spec, seed: optuna.samplers.CmaEsSampler(
        seed=seed, n_startup_trials=_startup(spec, 1), warn_independent_sampling=False
    ),
    "random": lambda spec, seed: optuna.samplers.RandomSampler(seed=seed),
    "evolution": lambda spec, seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=spec.sampler.population),
}


# -- without a model ---------------------------------------------------------------------------------------------------


def grid(space: Space, seed: int) -> list[Point]:
    """Every point, in a random order, so that a part of the grid is spread over all of it."""
    points: list[Point] = [{}]
    for path, parameter in space.parameters.items():
        points = [
            {**point, path: value} if space.applies(path, point) else point
            for point in points
            for value in (_values(parameter) if space.applies(path, point) else [None])
        ]
    random.Random(seed).shuffle(points)
    return points


def _untried(points: Sequence[Point], space: Space, trials: Sequence[FrozenTrial]) -> Point:
    tried = {key(space.decode(trial.params)) for trial in trials}
    found = next((point for point in points if key(point) not in tried), None)
    if found is None:
        raise Exhausted
    return found


def _values(parameter: Parameter) -> Sequence[Any]:
    if isinstance(parameter, ChoiceParameter):
        return parameter.choices
    assert parameter.step is not None, "the spec sees to it that a grid has steps"
    high = parameter.nearest(parameter.high)
    count = round((high - parameter.low) / parameter.step) + 1
    return [parameter.nearest(parameter.low + i * parameter.step) for i in range(count)]


def _quasi_random(space: Space, seed: int, index: int) -> Point:
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
    if parameter.step is None:
        return low + u * (high - low)
    return parameter.nearest(low + math.floor(u * (round((high - low) / parameter.step) + 1)) * parameter.step)


# -- which sampler -----------------------------------------------------------------------------------------------------


def choose(spec: StudySpec, space: Space) -> tuple[SamplerName, str]:
    """The sampler that ``auto`` stands for, and why."""
    if spec.scheduler.type == "pbt":
        return "qmc", "a population begins spread evenly"
    if spec.budget.trials is not None and spec.budget.trials <= 5:
        return "qmc", f"{spec.budget.trials} trials are too few to fit a model"
    return "gp", "a Gaussian process learns most from a trial"


def _arm(spec: StudySpec, trials: Sequence[FrozenTrial], number: int) -> str:
    """Thompson sampling over the samplers: each is as good as the share of its trials that were better than all before."""
    wins, losses = dict.fromkeys(spec.sampler.arms, 1.0), dict.fromkeys(spec.sampler.arms, 1.0)
    sign = 1.0 if spec.objectives[0].direction == "minimize" else -1.0
    best = math.inf
    for trial in trials:
        if trial.state is not TrialState.COMPLETE:
            continue
        value = sign * trial.values[0]
        arm = trial.user_attrs["sampler"]
        if arm in wins:
            # What was learnt long ago says less: the best sampler of a study's beginning is not that of its end.
            wins, losses = ({name: 1 + 0.95 * (count - 1) for name, count in counts.items()} for counts in (wins, losses))
            (wins if value < best else losses)[arm] += 1
        best = min(best, value)
    draw = random.Random(seed_of(spec.seed, number))
    return max(spec.sampler.arms, key=lambda arm: draw.betavariate(wins[arm], losses[arm]))

"""From the trials so far to the next point: Optuna's samplers, made anew for every ask and seeded by (study, trial, attempt).

Nothing is kept between asks, so whoever goes on with a study asks the same.
"""

import copy
import math
import random
import warnings
from collections.abc import Callable, Sequence

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from tuning import gaussian
from tuning.asking import Suggestion, asked, seed_of
from tuning.compat_optuna import GENERATION
from tuning.draws import quasi_random
from tuning.space import Space
from tuning.spec import SamplerName, StudySpec

GP_DIMENSIONS = 20
"""Beyond them ``auto`` takes TPE."""


class Exhausted(Exception):
    """No point is left, or none that chance would find."""


Sampler = Callable[[Sequence[FrozenTrial], int, int], Suggestion]
"""(trials, number of the trial to begin, attempt at it) -> suggestion."""


def make_sampler(spec: StudySpec, space: Space) -> Sampler:
    """Of any type but ``grid``, which knows all its points from the start."""
    if spec.sampler.type == "bandit":
        arms = list(dict.fromkeys(_able(arm, spec, space) for arm in spec.sampler.arms))
        return lambda trials, number, attempt: _ask(_arm(arms, spec, trials, number), spec, space, trials, number, attempt)
    name = choose(spec, space)[0] if spec.sampler.type == "auto" else _able(spec.sampler.type, spec, space)
    return lambda trials, number, attempt: _ask(name, spec, space, trials, number, attempt)


def _able(name: str, spec: StudySpec, space: Space) -> str:
    """The sampler, or ``tpe`` where a Gaussian process would have to learn too many branches."""
    return "tpe" if name == "gp" and len(spec.objectives) == 1 and gaussian.branches(space) is None else name


def _ask(name: str, spec: StudySpec, space: Space, trials: Sequence[FrozenTrial], number: int, attempt: int) -> Suggestion:
    if name == "qmc":
        return Suggestion(quasi_random(space, spec.seed, number + attempt), "qmc")
    if name == "gp" and len(spec.objectives) == 1:
        sign = 1.0 if spec.objectives[0].direction == "minimize" else -1.0
        point = gaussian.suggest(space, trials, sign, spec.seed, number, attempt, spec.sampler.startup_trials)
        return Suggestion(point, "gp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of TPE's groups, at every ask
        sampler = _SAMPLERS[name](spec, seed_of(spec.seed, number, attempt))
    if name == "cmaes":
        trials = _penalised(trials, spec)
    if name == "evolution":
        trials = [_founder(trial) for trial in trials]
    made = asked(sampler, [each.direction for each in spec.objectives], space, trials)
    return Suggestion(made.point, name, made.system)


def _penalised(trials: Sequence[FrozenTrial], spec: StudySpec) -> list[FrozenTrial]:
    """For a sampler that does not know of constraints: infeasible trials are as bad as the worst."""
    values = [trial.values[0] for trial in trials if trial.state is TrialState.COMPLETE]
    if not values:
        return list(trials)
    worst = max(values) if spec.objectives[0].direction == "minimize" else min(values)
    return [_with_value(trial, worst) if gaussian.infeasible(trial) else trial for trial in trials]


def _with_value(trial: FrozenTrial, value: float) -> FrozenTrial:
    penalised = copy.copy(trial)
    penalised.value = value
    return penalised


def _founder(trial: FrozenTrial) -> FrozenTrial:
    """A trial that evolution did not make (the base, a known point, one of an earlier study or of another arm) is of its first
    generation."""
    if GENERATION in trial.system_attrs:
        return trial
    founder = copy.copy(trial)
    founder.system_attrs = {**trial.system_attrs, GENERATION: 0}
    return founder


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


# -- which sampler -----------------------------------------------------------------------------------------------------


def choose(spec: StudySpec, space: Space) -> tuple[SamplerName, str]:
    """The sampler that ``auto`` stands for, and why."""
    if spec.scheduler.type == "pbt":
        return "qmc", "a population begins spread evenly"
    if spec.budget.trials is not None and spec.budget.trials <= 5:
        return "qmc", f"{spec.budget.trials} trials are too few to fit a model"
    found = gaussian.branches(space)
    if len(space.parameters) > GP_DIMENSIONS:
        return "tpe", f"{len(space.parameters)} parameters are too many for a Gaussian process"
    if found is None:
        return "tpe", f"conditions part the space into more than {gaussian.MOST_BRANCHES} branches"
    if len(spec.objectives) > 1:
        if len(found) > 1:
            return "tpe", "of several objectives, a Gaussian process learns only the parameters that apply everywhere"
        return "gp", "a Gaussian process for each objective seeks what adds most to the front"
    if len(found) > 1:
        return "gp", f"a Gaussian process for each of the {len(found)} branches of the space"
    return "gp", "a Gaussian process learns most from a trial"


def _arm(arms: Sequence[str], spec: StudySpec, trials: Sequence[FrozenTrial], number: int) -> str:
    """Thompson sampling over the samplers: each is as good as the share of its trials that were better than all before."""
    wins, losses = dict.fromkeys(arms, 1.0), dict.fromkeys(arms, 1.0)
    sign = 1.0 if spec.objectives[0].direction == "minimize" else -1.0
    best = math.inf
    for trial in trials:
        if trial.state is not TrialState.COMPLETE or gaussian.infeasible(trial):
            continue
        value = sign * trial.values[0]
        arm = trial.user_attrs["sampler"]
        if arm in wins:
            # What was learnt long ago says less: the best sampler of a study's beginning is not that of its end.
            wins, losses = ({name: 1 + 0.95 * (count - 1) for name, count in counts.items()} for counts in (wins, losses))
            (wins if value < best else losses)[arm] += 1
        best = min(best, value)
    draw = random.Random(seed_of(spec.seed, number))
    return max(arms, key=lambda arm: draw.betavariate(wins[arm], losses[arm]))

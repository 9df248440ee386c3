"""The peer of the tuning bench's regrets and of its table: what a user writes with Optuna alone, samplers and pruners as they come."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "gp": lambda seed: GPSampler(seed=seed),
    "cmaes": lambda seed: CmaEsSampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}
PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "none": NopPruner,
    "median": MedianPruner,
    "halving": SuccessiveHalvingPruner,
}

Distributions = Callable[[Mapping[str, Any]], Mapping[str, BaseDistribution]]
"""The parameters that apply, given the values of those before."""


def suggest(trial: optuna.Trial, distributions: Distributions) -> dict[str, Any]:
    while rest := [each for each in distributions(trial.params).items() if each[0] not in trial.params]:
        name, distribution = rest[0]
        match distribution:
            case FloatDistribution(low=low, high=high, log=log, step=step):
                trial.suggest_float(name, low, high, log=log, step=step)
            case IntDistribution(low=low, high=high, log=log, step=step):
                trial.suggest_int(name, low, high, log=log, step=step)
            case CategoricalDistribution(choices=choices):
                trial.suggest_categorical(name, choices)
            case _:
                raise AssertionError(f"no function has a {type(distribution).__name__}")
    return trial.params


def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def lowest(
    value: Callable[[dict[str, Any]], float], distributions: Distributions, sampler: str, seed: int, trials: int
) -> float:
    """The least of so many values."""
    quiet()
    study = optuna.create_study(sampler=SAMPLERS[sampler](seed))
    study.optimize(lambda trial: value(suggest(trial, distributions)), n_trials=trials)
    return float(study.best_value)


class Spent(Exception):
    """All steps are taken."""


def lowest_of_steps(
    curve: Callable[[dict[str, Any]], Mapping[int, float]],
    distributions: Distributions,
    sampler: str,
    pruner: str,
    seed: int,
    steps: int,
) -> float:
    """The least last value of the curves that end before ``steps`` steps are taken, those of stopped ones counted; infinite
    where none does."""
    quiet()
    study = optuna.create_study(sampler=SAMPLERS[sampler](seed), pruner=PRUNERS[pruner]())
    best, left = float("inf"), steps

    def objective(trial: optuna.Trial) -> float:
        nonlocal best, left
        measured, before = curve(suggest(trial, distributions)), 0
        *on_the_way, end = measured
        for step in measured:
            left, before = left - (step - before), step
            if left < 0:
                raise Spent
            if step in on_the_way:
                trial.report(measured[step], step)
                if trial.should_prune():
                    raise optuna.TrialPruned
        best = min(best, measured[end])
        return measured[end]

    try:
        while True:
            study.optimize(objective, n_trials=1)
    except Spent:
        return best

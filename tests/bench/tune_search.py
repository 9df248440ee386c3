"""Manta's search, on a function in the place of a training job: what the study's loop does with one worker, and no more.

Points come from ``make_sampler``, stops from ``should_stop``, and the trials in between are those of ``tuning.study.Study``.
Then the race for the lowest value of ``TRIALS`` evaluations against Optuna's samplers (``peers/optuna_samplers.py``).
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from typing import Any, TypeVar

from optuna.storages import InMemoryStorage

from tests.bench.peers import optuna_samplers
from tests.bench.tune_functions import FUNCTIONS
from tuning.parameters import Parameter
from tuning.samplers import make_sampler
from tuning.scheduler import judged_at, should_stop
from tuning.space import JobSpace, Point, Space
from tuning.spec import AshaScheduler, StudySpec
from tuning.study import BRACKET, RUNGS, Study

CORES = 2
RACED = ("branin", "hartmann6", "rosenbrock5", "conditional")
SEEDS, FEW_SEEDS, TRIALS = 50, 10, 60
"""Of each figure there are two, the second (``first10``) over the first ten seeds. On Hartmann6 a process ends in the global
minimum or in a local one, each in about half of its studies: a median over ten is a toss of a coin."""
FLOOR = 1e-3
"""Of a regret: what is nearer to the minimum than this is as near."""

Task = TypeVar("Task")
Result = TypeVar("Result")


class _Points(JobSpace):
    """Whose points stand for no job."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        Space.__init__(self, parameters)


class Search:
    """``total_steps``: of a trial, where they are stopped early."""

    def __init__(
        self, parameters: Mapping[str, Parameter], seed: int, budget: dict[str, int], total_steps: int | None = None
    ) -> None:
        given: dict[str, Any] = {
            "base": {"training": {"eval_interval": 1}},
            "space": {"training.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2}},
            "scheduler": {"type": "none" if total_steps is None else "asha"},
            "budget": budget,
            "seed": seed,
        }
        spec = StudySpec.model_validate(given)
        self._total_steps = total_steps
        self._study = Study(spec, InMemoryStorage())
        self._study.space = _Points(parameters)
        self._sampler = make_sampler(spec.model_copy(update={"space": dict(parameters)}), self._study.space)

    def begin(self) -> tuple[int, Point]:
        """A trial's number and its point."""
        trials = self._study.trials
        suggestion = self._sampler(trials, len(trials), 0)
        return self._study.begin(suggestion, self._judged_at(len(trials))), suggestion.point

    def _judged_at(self, number: int) -> dict[str, Any]:
        scheduler = self._study.spec.scheduler
        if self._total_steps is None or not isinstance(scheduler, AshaScheduler):
            return {}
        rungs, bracket = judged_at(scheduler, self._study.spec.budget, number, self._total_steps)
        return {RUNGS: rungs, BRACKET: bracket}

    def measured(self, number: int, step: int, value: float) -> bool:
        """Whether the trial goes on."""
        self._study.report(number, step, value)
        scheduler = self._study.spec.scheduler
        assert isinstance(scheduler, AshaScheduler)
        reason = should_stop(scheduler, self._study.courses, number, step, minimize=True)
        if reason is not None:
            self._study.prune(number, reason)
        return reason is None

    def complete(self, number: int, value: float) -> None:
        self._study.complete(number, [value], {})


# -- the lowest value ------------------------------------------------------------------------------------------------------


def regret(task: tuple[str, str, int, int]) -> float:
    """(function, who searches, seed, trials) -> how far from the minimum the best of them is."""
    name, who, seed, trials = task
    function = FUNCTIONS[name]
    if who != "manta":
        value, distributions = lambda params: function.value(params, 1.0), function.distributions_at
        return optuna_samplers.lowest(value, distributions, who, seed, trials) - function.minimum
    search, lowest = Search(function.parameters, seed, {"trials": trials}), float("inf")
    for _ in range(trials):
        number, point = search.begin()
        found = function.value(point, 1.0)
        search.complete(number, found)
        lowest = min(lowest, found)
    return lowest - function.minimum


def regret_figures(say: Callable[[str], None], seeds: int = SEEDS, trials: int = TRIALS) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with pool() as workers:
        for name in RACED:
            medians, of_few = {}, {}
            for who in ("manta", *optuna_samplers.SAMPLERS):
                found = list(workers.map(regret, [(name, who, seed, trials) for seed in range(seeds)]))
                medians[who], of_few[who] = median(found), median(found[:FEW_SEEDS])
                say(f"  {name} {who}: {medians[who]:.5f} ({min(found):.5f} to {max(found):.5f})")
            figures |= {f"regret_{name}_{who}": float(f"{value:.4g}") for who, value in medians.items()}
            figures[f"regret_vs_best_{name}"] = round(regret_ratio(medians), 3)
            figures |= {f"regret_{name}_{who}_first10": float(f"{value:.4g}") for who, value in of_few.items()}
            figures[f"regret_vs_best_{name}_first10"] = round(regret_ratio(of_few), 3)
    return figures


def regret_ratio(medians: Mapping[str, float]) -> float:
    """Manta's regret over the best of its peers'."""
    best = min(value for who, value in medians.items() if who != "manta")
    return max(medians["manta"], FLOOR) / max(best, FLOOR)


def pool() -> ProcessPoolExecutor:
    """Processes that import for themselves: forked ones would share this one's threads."""
    return ProcessPoolExecutor(CORES, mp_context=get_context("spawn"))

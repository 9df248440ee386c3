"""Searches over measured runs: the table of ``tests/bench/tune_table.py`` answers in the place of training.

A side may take as many optimizer steps as 20 whole trials have. Manta is a study as users have it (``auto``, ASHA, its first
trial is ``base``), through the study's own loop. Random search and Optuna's TPE train every trial to its end; TPE with
Optuna's pruners is printed beside them. What counts is the lowest final loss of the trials that came to their end before the
steps were spent. Everybody searches ranges, and a point stands for the run of the table that is nearest to it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from optuna.storages import InMemoryStorage

from tests.bench.peers import optuna_samplers
from tests.bench.tune_search import pool
from tests.bench.tune_table import INTERVAL, SPACE, STEPS, base, key, load
from tuning.loop import Loop
from tuning.paths import get
from tuning.space import Space
from tuning.spec import StudySpec
from tuning.study import Study
from tuning.trials import Assignment, Ended, Measured, News
from workers.spec import TrainSpec

SEEDS = 50
BUDGET_STEPS = 20 * STEPS
SEARCHED: dict[str, dict[str, Any]] = {
    "training.learning_rate": {"type": "float", "low": 0.001, "high": 0.256, "log": True},
    "training.warmup_fraction": {"type": "float", "low": 0.02, "high": 0.3, "log": True},
    "training.weight_decay": {"type": "choice", "choices": [0.0, 0.2]},
    "training.optimizer": {"type": "choice", "choices": ["adamw", "muon"]},
    "model.num_hidden_layers": {"type": "int", "low": 1, "high": 2},
    "model.n_routed_experts": {"type": "choice", "choices": [2, 8]},
}
PEERS = {
    "random": ("random", "none"),
    "tpe": ("tpe", "none"),
    "tpe_median": ("tpe", "median"),
    "tpe_halving": ("tpe", "halving"),
}
"""Optuna's sampler and pruner."""


def study_of(seed: int, **rest: Any) -> StudySpec:
    given = {"base": base("tales.jsonl"), "space": SEARCHED, "scheduler": {"type": "asha"}, "seed": seed}
    return StudySpec.model_validate(given | {"budget": {"steps": BUDGET_STEPS}} | rest)


class Table:
    def __init__(self) -> None:
        self._curves = load()

    def curve(self, point: Mapping[str, Any]) -> dict[int, float]:
        """Optimizer step -> held-out loss, of the run nearest to a point."""
        nearest = {path: min(values, key=lambda value: _distance(point[path], value)) for path, values in SPACE.items()}
        return {INTERVAL * i: loss for i, loss in enumerate(self._curves[key(nearest)], 1)}

    def rank(self, loss: float) -> float:
        """The share of runs that ended lower."""
        return sum(curve[-1] < loss for curve in self._curves.values()) / len(self._curves)


def _distance(one: Any, other: Any) -> float:
    """Of learning rates and warm-ups by their logarithms; there is nothing between choices."""
    if one == other:
        return 0.0
    numbers = all(isinstance(each, float) and each > 0 for each in (one, other))
    return abs(math.log(one / other)) if numbers else math.inf


class StepsSpent(Exception):
    """No step is left."""


@dataclass
class TableTrials:
    """Trials one at a time, as ``tuning.trials.Trials`` says; each call of ``news`` trains to the next evaluation."""

    table: Table
    steps_left: int
    best: float = math.inf
    begun: int = 0
    _number: int | None = None
    _waits: bool = False
    _stopped: bool = False
    _rest: list[tuple[int, float]] = field(default_factory=list)

    @property
    def free(self) -> int:
        return int(self._number is None)

    def begin(self, assignment: Assignment) -> None:
        job = TrainSpec.model_validate(assignment.job)
        self._number, self._stopped, self.begun = assignment.number, False, self.begun + 1
        self._rest = list(self.table.curve({path: get(job, path) for path in SPACE}).items())

    def answer(self, number: int, go_on: bool) -> None:
        self._stopped = not go_on

    def news(self, timeout: float) -> Sequence[News]:
        assert self._number is not None
        if self._stopped:
            number, self._number = self._number, None
            return [Ended(number, "stopped")]
        if self.steps_left < INTERVAL:
            raise StepsSpent
        self.steps_left -= INTERVAL
        step, loss = self._rest.pop(0)
        if self._rest:
            return [Measured(self._number, step, {"eval_loss": loss})]
        number, self._number, self.best = self._number, None, min(self.best, loss)
        return [Ended(number, "succeeded", {"eval_loss": loss})]

    def close(self) -> None: ...


def replayed(spec: StudySpec, steps: int) -> TableTrials:
    """A study's trials by the table, to its end or until ``steps`` are spent."""
    trials = TableTrials(Table(), steps)
    with suppress(StepsSpent):
        Loop(Study(spec, InMemoryStorage()), trials, pulse=lambda: None, clock=lambda: 0.0).run()
    return trials


def manta(seed: int, steps: int = BUDGET_STEPS) -> float:
    return replayed(study_of(seed), steps).best


def lowest(task: tuple[str, int, int]) -> float:
    """(who searches, seed, steps) -> the lowest final loss."""
    who, seed, steps = task
    if who == "manta":
        return manta(seed, steps)
    sampler, pruner = PEERS[who]
    distributions = Space(study_of(seed).space).distributions
    return optuna_samplers.lowest_of_steps(Table().curve, lambda params: distributions, sampler, pruner, seed, steps)


def wins(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The share of seeds with a lower loss; an equal one is half."""
    return sum(1.0 if a < b else 0.5 if a == b else 0.0 for a, b in zip(ours, theirs, strict=True)) / len(ours)


def replay_figures(say: Callable[[str], None], seeds: int = SEEDS, steps: int = BUDGET_STEPS) -> dict[str, Any]:
    table, found = Table(), {}
    with pool() as workers:
        for who in ("manta", *PEERS):
            found[who] = list(workers.map(lowest, [(who, seed, steps) for seed in range(seeds)]))
            typical = median(found[who])
            say(f"  {who}: {typical:.4f}; {table.rank(typical):.1%} of the table's runs are lower")
    return {
        "table_runs": len(load()),
        "table_budget_steps": steps,
        **{f"wins_vs_{who}": round(wins(found["manta"], found[who]), 3) for who in PEERS},
        **{f"table_loss_{who}": round(median(losses), 4) for who, losses in found.items()},
        **{f"table_rank_{who}": round(table.rank(median(losses)), 4) for who, losses in found.items()},
    }

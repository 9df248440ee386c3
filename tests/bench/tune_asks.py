"""What an ask costs once a study is long: CPU time near trial 1,000, and memory.

Hartmann's function of six dimensions at 1,000 random points, the same ones for both. ``ask_vs_optuna`` compares what the
study's loop does, ``next_point`` with a study in a journal over six fields of a job, ``tpe`` and ``gp``, with Optuna's samplers
of the same settings, in Optuna's own study in memory: ``study.ask`` and six suggestions. The sides take turns, so that a slow
minute slows both; each is told the value of every point. The first ask, in which a process meets a study that is that long
already, does not count.
"""

import gc
import os
import random
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from time import process_time
from typing import Any

import optuna
import psutil
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, create_trial

from tests.bench.peers.optuna_samplers import quiet, suggest
from tests.bench.tune_functions import FUNCTIONS
from tuning.ask import next_point
from tuning.journal import KnownJournal
from tuning.samplers import Sampler, make_sampler
from tuning.space import Point, Space
from tuning.spec import StudySpec
from tuning.study import METRICS, SAMPLER, Study

FUNCTION = FUNCTIONS["hartmann6"]
FIELDS = {
    "training.learning_rate": "x0",
    "training.weight_decay": "x1",
    "training.label_smoothing": "x2",
    "training.warmup_fraction": "x3",
    "training.decay_fraction": "x4",
    "training.min_learning_rate_ratio": "x5",
}
LOW, HIGH = 1e-3, 0.5
"""Of every field: all points are jobs."""
TRIALS = 1000
ASKS = {"tpe": 20, "gp": 4}
PEERS: dict[str, Callable[[], BaseSampler]] = {
    "tpe": lambda: TPESampler(seed=0, multivariate=True, group=True),
    "gp": lambda: GPSampler(seed=0),
}
MEMORY_ASKS = {"tpe": (100, 400), "gp": (8, 24)}
"""Before the first look at memory, and between the looks."""


def sampler_of(name: str) -> Sampler:
    given = {
        "space": {"training.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2}},
        "sampler": name,
        "budget": {"trials": 2 * TRIALS},
    }
    spec = StudySpec.model_validate(given).model_copy(update={"space": dict(FUNCTION.parameters)})
    return make_sampler(spec, Space(FUNCTION.parameters))


def known(trials: int) -> optuna.Study:
    """A study with so many random trials."""
    draw, space = random.Random(0), Space(FUNCTION.parameters)
    study = optuna.create_study()
    for _ in range(trials):
        add(study, space, {path: draw.random() for path in FUNCTION.parameters})
    return study


def add(study: optuna.Study, space: Space, point: Point) -> None:
    value = FUNCTION.value(point, 1.0)
    study.add_trial(create_trial(params=space.encode(point), distributions=dict(space.distributions), value=value))


def study_of(name: str, trials: int) -> Study:
    """With as many trials as ``known``, at its points."""
    given = {
        "space": {path: {"type": "float", "low": LOW, "high": HIGH} for path in FIELDS},
        "sampler": name,
        "budget": {"trials": 2 * TRIALS},
    }
    study = Study(StudySpec.model_validate(given), JournalStorage(KnownJournal([])))
    for trial in known(trials).get_trials(deepcopy=False):
        told = create_trial(
            params={path: LOW + (HIGH - LOW) * trial.params[x] for path, x in FIELDS.items()},
            distributions=dict(study.space.distributions),
            values=trial.values,
            user_attrs={SAMPLER: name, METRICS: {}},
        )
        study.optuna.add_trial(told)
    return study


def manta_seconds(name: str, asks: int, trials: int) -> Iterator[float]:
    """CPU time of each ask."""
    study = study_of(name, trials)
    for _ in range(asks):
        before = process_time()
        suggestion = next_point(study)
        taken = process_time() - before
        number = study.begin(suggestion)
        point = {x: (suggestion.point[path] - LOW) / (HIGH - LOW) for path, x in FIELDS.items()}
        study.complete(number, [FUNCTION.value(point, 1.0)], {})
        yield taken


def optuna_seconds(name: str, asks: int, trials: int) -> Iterator[float]:
    study = known(trials)
    study.sampler = PEERS[name]()
    for _ in range(asks):
        before = process_time()
        trial = study.ask()
        point = suggest(trial, FUNCTION.distributions_at)
        taken = process_time() - before
        study.tell(trial, FUNCTION.value(point, 1.0))
        yield taken


def growth_kib(name: str, so_far: Sequence[FrozenTrial], before: int, asks: int) -> float:
    """By how much this process grows an ask: the trials stay the same, so what is asked for should leave nothing behind."""
    sampler, process = sampler_of(name), psutil.Process(os.getpid())
    for number in range(before):
        sampler(so_far, len(so_far) + number, 0)
    gc.collect()
    held = process.memory_info().rss
    for number in range(before, before + asks):
        sampler(so_far, len(so_far) + number, 0)
    gc.collect()
    return (process.memory_info().rss - held) / 1024 / asks


def ask_figures(say: Callable[[str], None], trials: int = TRIALS, share: float = 1.0) -> dict[str, Any]:
    """``share`` of the asks."""
    quiet()
    figures: dict[str, Any] = {}
    for name, asks in ASKS.items():
        count = max(2, round(asks * share))
        turns = list(zip(manta_seconds(name, count, trials), optuna_seconds(name, count, trials), strict=True))
        ours, theirs = (median(side) for side in zip(*turns[1:], strict=True))
        say(f"  {name}: {1e3 * ours:.1f} ms an ask, Optuna {1e3 * theirs:.1f} ms")
        figures |= {
            f"ask_ms_{name}": round(1e3 * ours, 2),
            f"optuna_ask_ms_{name}": round(1e3 * theirs, 2),
            f"ask_vs_optuna_{name}": round(ours / theirs, 3),
        }
    so_far = known(trials).get_trials(deepcopy=False)
    for name, (before, between) in MEMORY_ASKS.items():
        grown = growth_kib(name, so_far, round(before * share), max(1, round(between * share)))
        say(f"  {name}: {grown:.2f} KiB an ask")
        figures[f"ask_memory_growth_kib_{name}"] = round(grown, 2)
    return figures

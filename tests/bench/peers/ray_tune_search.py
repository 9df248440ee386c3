"""The peer of the tuning bench's multi-fidelity race: Ray Tune's own searcher and scheduler, as they come.

``OptunaSearch`` and ``ASHAScheduler`` hear what the Tune controller tells them, in its order, of one trial at a time; without its
processes, which would change the time and not the points.
"""

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from optuna.distributions import BaseDistribution
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch


def search(
    space: Mapping[str, BaseDistribution],
    value: Callable[[dict[str, Any], int], float],
    max_t: int,
    epochs: int,
    seed: int,
) -> Iterator[tuple[int, int, dict[str, Any], float]]:
    """(trial, its epoch, its point, value there), for each of so many epochs."""
    searcher = OptunaSearch(dict(space), metric="value", mode="min", seed=seed)
    scheduler = ASHAScheduler(metric="value", mode="min", max_t=max_t)
    number = spent = 0
    while True:
        trial = SimpleNamespace(trial_id=str(number))
        scheduler.on_trial_add(None, trial)
        point = searcher.suggest(trial.trial_id)
        for epoch in range(1, max_t + 1):
            if spent == epochs:
                return
            result = {"value": value(point, epoch), "training_iteration": epoch}
            yield number, epoch, point, result["value"]
            spent += 1
            if scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
                break
            searcher.on_trial_result(trial.trial_id, result)
        scheduler.on_trial_complete(None, trial, result)
        searcher.on_trial_complete(trial.trial_id, result)
        number += 1

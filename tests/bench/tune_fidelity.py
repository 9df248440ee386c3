"""How soon a search that stops trials early is near the minimum, beside Ray Tune's.

MF-Hartmann: a trial's value after epoch ``e`` of 27 is that at fidelity ``e / 27``. 540 epochs in all, one trial at a time.
After every epoch each side has an incumbent; its regret is taken at full fidelity, and the area under it is its mean over the
epochs.

``last``: the incumbent is the trial with the best last value, Ray's ``get_best_result``. ``deep``: of the trials that came
furthest, the one with the best value there.
"""

from collections.abc import Callable, Iterable, Iterator
from statistics import fmean, median
from typing import Any, Literal, NamedTuple

from tests.bench.peers import ray_tune_search
from tests.bench.tune_functions import FUNCTIONS
from tests.bench.tune_search import Search, pool
from tuning.space import Point, Space

RACED = ("hartmann3", "hartmann6")
SEEDS, TRIAL_EPOCHS, EPOCHS = 20, 27, 540

Rule = Literal["last", "deep"]


class Epoch(NamedTuple):
    trial: int
    epoch: int
    """Of the trial, from 1."""
    point: Point
    value: float


def manta(name: str, seed: int, epochs: int = EPOCHS) -> Iterator[Epoch]:
    """A Bayesian search (``auto``) and ASHA, as they come."""
    function = FUNCTIONS[name]
    search, spent = Search(function.parameters, seed, {"steps": epochs}, TRIAL_EPOCHS), 0
    while True:
        number, point = search.begin()
        for epoch in range(1, TRIAL_EPOCHS + 1):
            if spent == epochs:
                return
            value = function.value(point, epoch / TRIAL_EPOCHS)
            yield Epoch(number, epoch, point, value)
            spent += 1
            if epoch == TRIAL_EPOCHS:
                search.complete(number, value)
            elif not search.measured(number, epoch, value):
                break


def ray(name: str, seed: int, epochs: int = EPOCHS) -> Iterator[Epoch]:
    function = FUNCTIONS[name]
    space = Space(function.parameters).distributions
    made = ray_tune_search.search(
        space, lambda point, epoch: function.value(point, epoch / TRIAL_EPOCHS), TRIAL_EPOCHS, epochs, seed
    )
    return (Epoch(*each) for each in made)


def anytime(epochs: Iterable[Epoch], regret: Callable[[Point], float]) -> dict[Rule, list[float]]:
    """The regret of the incumbent after each epoch."""
    newest: dict[int, Epoch] = {}
    curves: dict[Rule, list[float]] = {"last": [], "deep": []}
    for each in epochs:
        newest[each.trial] = each
        deepest = max(other.epoch for other in newest.values())
        last = min(newest.values(), key=lambda other: other.value)
        deep = min((other for other in newest.values() if other.epoch == deepest), key=lambda other: other.value)
        curves["last"].append(regret(last.point))
        curves["deep"].append(regret(deep.point))
    return curves


def areas(task: tuple[str, str, int, int]) -> dict[Rule, float]:
    """(function, who searches, seed, epochs) -> the area under each rule's curve, over its length."""
    name, who, seed, epochs = task
    curves = anytime((manta if who == "manta" else ray)(name, seed, epochs), FUNCTIONS[name].regret)
    return {rule: fmean(curve) for rule, curve in curves.items()}


def fidelity_figures(say: Callable[[str], None], seeds: int = SEEDS, epochs: int = EPOCHS) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    rules: tuple[Rule, ...] = ("last", "deep")
    with pool() as workers:
        for name in RACED:
            found = {
                who: list(workers.map(areas, [(name, who, seed, epochs) for seed in range(seeds)])) for who in ("manta", "ray")
            }
            for rule in rules:
                ours, theirs = ([each[rule] for each in found[who]] for who in ("manta", "ray"))
                say(f"  {name} {rule}: area {fmean(ours):.4f} (median {median(ours):.4f})")
                say(f"    Ray: {fmean(theirs):.4f} ({median(theirs):.4f})")
                suffix = "" if rule == "last" else "_deep"
                figures[f"area_{name}{suffix}"] = round(fmean(ours), 4)
                figures[f"ray_area_{name}{suffix}"] = round(fmean(theirs), 4)
                figures[f"multifidelity_vs_ray_{name}{suffix}"] = round(fmean(theirs) / fmean(ours), 2)
    return figures

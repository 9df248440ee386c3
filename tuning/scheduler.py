"""Which trials stop early. Pure: what a trial hears at a step follows from what all trials measured before it.

A rung is a number of optimizer steps; a trial comes to it with its first measurement at or after it.
"""

import math
from collections.abc import Container, Mapping, Sequence

from tuning.spec import AshaScheduler, Budget, HyperbandScheduler

Curve = Mapping[int, float]
"""Optimizer step -> value of the first objective."""

MOST_SHARES = 1.5
"""No more than so many times ``1 / reduction_factor`` of those that came to a rung go on from it. A search that gets better
brings one of the best third nearly every time, and would stop nothing."""


def grace_steps(scheduler: AshaScheduler | HyperbandScheduler, total_steps: int) -> int:
    return scheduler.grace_steps or max(1, total_steps // scheduler.reduction_factor**3)


def rungs(scheduler: AshaScheduler | HyperbandScheduler, budget: Budget, total_steps: int) -> list[int]:
    """``grace``, ``grace * factor``, ... below the end of the run, where nothing is left to save; and no more of them than the
    budget fills: with ``k`` rungs it takes ``factor ** (k + 1)`` trials for a few to come to the end."""
    grace, factor = grace_steps(scheduler, total_steps), scheduler.reduction_factor
    found: list[int] = []
    while (rung := grace * factor ** len(found)) < total_steps:
        trials = [math.inf if budget.trials is None else budget.trials]
        if budget.steps is not None:
            trials.append(budget.steps / (grace * (len(found) + 2)))  # a trial costs about a grace at each rung
        if min(trials) < factor ** (len(found) + 2):
            break
        found.append(rung)
    return found


def value_at(curve: Curve, rung: int) -> float | None:
    """What a trial brought to a rung; None if it has not come so far."""
    later = [step for step in curve if step >= rung]
    return curve[min(later)] if later else None


def bracket(number: int, brackets: int) -> int:
    """Of a trial. Hyperband spends as much on each; one that stops later takes fewer trials for that."""
    # Bracket b's trials cost about brackets / (b + 1) as much less: deal b + 1 ... 1 of each round to the eager ones.
    deal = [each for each in range(brackets) for _ in range(brackets - each)]
    return deal[number % len(deal)]


def should_stop(
    scheduler: AshaScheduler | HyperbandScheduler,
    budget: Budget,
    curves: Sequence[Curve],
    stopped: Container[int],
    number: int,
    step: int,
    total_steps: int,
    minimize: bool,
) -> str | None:
    """Why trial ``number``, which has just measured at ``step``, is to stop; None lets it go on.

    Args:
        curves: of all trials, by number; that of this one up to ``step``.
        stopped: the numbers of those that were.
        total_steps: of this trial.
    """
    factor = scheduler.reduction_factor
    milestones = rungs(scheduler, budget, total_steps)
    rivals: Mapping[int, Curve] = dict(enumerate(curves))
    if isinstance(scheduler, HyperbandScheduler):
        brackets = max(len(milestones), 1)
        mine = bracket(number, brackets)
        milestones = milestones[mine:]
        rivals = {other: curve for other, curve in rivals.items() if bracket(other, brackets) == mine}
    reached = [rung for rung in milestones if rung <= step and not _passed(curves[number], rung, step)]
    if not reached:
        return None
    rung = reached[-1]
    # This one's is among them. None goes on before there are enough to compare with: to let the first ones go, as poor as they
    # may be, costs a search of few trials a large part of its budget.
    values = {other: value for other, curve in rivals.items() if (value := value_at(curve, rung)) is not None}
    came, sign = len(values), 1.0 if minimize else -1.0
    room = came // factor
    if sum(sign * value < sign * values[number] for value in values.values()) >= room:
        return f"not among the best {room} of {came} trials at step {rung}"
    went = sum(other != number and not _stopped_at(rung, rivals[other], other in stopped) for other in values)
    if went >= math.ceil(MOST_SHARES * came / factor):
        return f"{went} of {came} trials went on from step {rung} already"
    return None


def _stopped_at(rung: int, curve: Curve, stopped: bool) -> bool:
    """Whether a trial that came to a rung did not go on from it."""
    return stopped and not any(_passed(curve, rung, step) for step in curve)


def _passed(curve: Curve, rung: int, step: int) -> bool:
    """Whether a measurement before ``step`` came to the rung already."""
    return any(rung <= before < step for before in curve)

"""Which trials stop early. Pure: what a trial hears at a step follows from what came of all trials before it.

A rung is a number of optimizer steps; a trial comes to it with its first measurement at or after it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tuning.spec import AshaScheduler, Budget, HyperbandScheduler

Curve = Mapping[int, float]
"""Optimizer step -> value of the first objective."""

MOST_SHARES = 1.5
"""Of the trials that are judged at a rung, no more than so many times ``1 / reduction_factor`` go on, rounded up. A search that
gets better brings one of the best third nearly every time, and would stop next to nothing."""


class Course(NamedTuple):
    """What a scheduler knows of a trial."""

    curve: Curve
    """Empty, where what it measured holds nobody back."""
    rungs: Sequence[int]
    """At which it is judged; none, where it trains to its end whatever it measures."""
    bracket: int | None
    """None: others are compared with it in all."""
    stopped: bool


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


def judged_at(
    scheduler: AshaScheduler | HyperbandScheduler, budget: Budget, number: int, total_steps: int
) -> tuple[list[int], int]:
    """The rungs and the bracket of trial ``number``, which begins now and has ``total_steps``."""
    found = rungs(scheduler, budget, total_steps)
    mine = bracket(number, max(len(found), 1)) if isinstance(scheduler, HyperbandScheduler) else 0
    return found[mine:], mine


def should_stop(
    scheduler: AshaScheduler | HyperbandScheduler, courses: Sequence[Course], number: int, step: int, minimize: bool
) -> str | None:
    """Why trial ``number``, which has just measured at ``step``, is to stop; None lets it go on.

    Args:
        courses: of all trials, by number; that of this one up to ``step``.
    """
    mine, factor, sign = courses[number], scheduler.reduction_factor, 1.0 if minimize else -1.0
    reached = [rung for rung in mine.rungs if rung <= step and not _passed(mine.curve, rung, step)]
    if not reached:
        return None
    rung = reached[-1]
    rivals = {each: rival for each, rival in enumerate(courses) if rival.bracket in (mine.bracket, None)}
    # This one's is among them. None goes on before there are enough to compare with: to let the first ones go, as poor as they
    # may be, costs a search of few trials a large part of its budget.
    values = {each: value for each, rival in rivals.items() if (value := value_at(rival.curve, rung)) is not None}
    room = len(values) // factor
    if not room:
        return f"one of the first {factor - 1} trials at step {rung}: too few to compare"
    if sum(sign * value < sign * values[number] for value in values.values()) >= room:
        return f"not among the best {room} of {len(values)} trials at step {rung}"
    judged = [rivals[each] for each in values if each != number and rung in rivals[each].rungs]
    went = sum(not _stopped_at(rung, rival) for rival in judged)
    if went >= math.ceil(MOST_SHARES * (len(judged) + 1) / factor):
        return f"{went} of {len(judged) + 1} trials went on from step {rung} already"
    return None


def _stopped_at(rung: int, course: Course) -> bool:
    """Whether a trial that came to a rung did not go on from it."""
    return course.stopped and max(course.curve) == min(step for step in course.curve if step >= rung)


def _passed(curve: Curve, rung: int, step: int) -> bool:
    """Whether a measurement before ``step`` came to the rung already."""
    return any(rung <= before < step for before in curve)

"""A Gaussian process (Optuna's) over a study as it should see it, of one objective.

Optuna's sampler sees a study that holds our view of the trials so far:

- Values, not curves. A stopped trial's last value is carried to the deepest step by the median gain of the trials that measured
  at both. (Told as it stands, a value of ten steps competes with one of a thousand.)
- Every second ask sees the values warped to be as normal as a power can make them (the idea is HEBO's, arXiv 2012.03826): a
  stationary process can follow neither a floor of 1 between walls of 1e5 nor a pit in a plain.
- At most ``SHOWN`` trials, so that an ask costs the same at trial 300 and at trial 3,000.
- Of a space with conditions, the trials of one branch, and a process for each.
"""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuning.asking import asked, seed_of
from tuning.draws import combinations, quasi_random, random_point
from tuning.parameters import FloatParameter
from tuning.space import Point, Space

SHOWN = 200
"""A fit is cubic in them."""
STARTUP, EARLY_STARTUP, BRANCH_STARTUP = 8, 5, 5
"""Trials spread evenly before there is a model: of a study; of one that has stopped trials; of a branch."""
MOST_BRANCHES = 8
FLOOR = 0.1
"""Of the median distance, which is added to all before a power is taken."""

Floats = npt.NDArray[np.float64]


def suggest(
    space: Space, trials: Sequence[FrozenTrial], sign: float, seed: int, number: int, attempt: int, startup: int | None
) -> Point:
    """
    Args:
        space: of at most ``MOST_BRANCHES`` branches.
        trials: all so far, running ones among them.
        sign: 1 to minimise, -1 to maximise.
        startup: trials before there is a model; None: as the constants say.
    """
    found = branches(space)
    assert found is not None, "TPE is asked instead"
    if len(found) == 1:
        enough = startup if startup is not None else EARLY_STARTUP if any(map(_stopped, trials)) else STARTUP
        return _of_one(space, trials, sign, seed, number, attempt, enough)
    branch, mine = _next_branch(found, space, trials, sign)
    if attempt and number % 2 == 0:  # a branch may hold nothing that is a job
        branch = found[seed_of(seed, number, attempt) % len(found)]
        mine = _of_branch(space, trials, branch)
    rest = within(space, branch)
    if not rest.parameters:
        return branch
    return branch | _of_one(rest, mine, sign, seed, number, attempt, BRANCH_STARTUP if startup is None else startup)


def branches(space: Space) -> list[Point] | None:
    """Every combination of the values that decide which parameters apply; one, empty, where nothing does. None: they are more
    than ``MOST_BRANCHES``, and no process can learn all of them."""
    of = {parent for parameter in space.parameters.values() for parent in parameter.when}
    parents = {path: parameter for path, parameter in space.parameters.items() if path in of}
    if any(isinstance(parameter, FloatParameter) and parameter.step is None for parameter in parents.values()):
        return None
    found = list(islice(combinations(space, list(parents)), MOST_BRANCHES + 1))
    return found if len(found) <= MOST_BRANCHES else None


def within(space: Space, branch: Mapping[str, Any]) -> Space:
    """What is left to choose in a branch."""
    rest = {
        path: parameter.model_copy(update={"when": {}})
        for path, parameter in space.parameters.items()
        if path not in branch and space.applies(path, branch)
    }
    return Space(rest)


def _of_branch(space: Space, trials: Sequence[FrozenTrial], branch: Point) -> list[FrozenTrial]:
    wanted = space.encode(branch)
    return [trial for trial in trials if all(trial.params.get(path) == value for path, value in wanted.items())]


def _next_branch(
    found: Sequence[Point], space: Space, trials: Sequence[FrozenTrial], sign: float
) -> tuple[Point, list[FrozenTrial]]:
    """The branch whose number of trials falls shortest of its share, ``1 / rank`` by its best value, and its trials."""
    values = estimates(trials, sign)
    of = [_of_branch(space, trials, branch) for branch in found]
    best = [min((values[trial.number] for trial in mine if trial.number in values), default=math.inf) for mine in of]
    rank = {branch: place for place, branch in enumerate(sorted(range(len(found)), key=lambda i: (best[i], i)), 1)}
    new = [i for i in range(len(found)) if len(of[i]) < BRANCH_STARTUP]
    chosen = min(new or range(len(found)), key=lambda i: (len(of[i]) * (1 if new else rank[i]), i))
    return found[chosen], of[chosen]


def _of_one(
    space: Space, trials: Sequence[FrozenTrial], sign: float, seed: int, number: int, attempt: int, startup: int
) -> Point:
    if attempt:  # what the process asked for was refused
        return random_point(space, seed, number, attempt)
    if len(estimates(trials, sign)) < max(startup, 2):
        return quasi_random(space, seed, len(trials))
    sampler = optuna.samplers.GPSampler(
        seed=seed_of(seed, number, attempt), n_startup_trials=1, warn_independent_sampling=False
    )
    return asked(sampler, ["minimize"], space, view(space, trials, sign, warped=number % 2 == 1)).point


def _stopped(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.PRUNED


def infeasible(trial: FrozenTrial) -> bool:
    """Whether an ended trial is beyond a limit."""
    return any(excess > 0 for excess in trial.constraints.values())


def _last(trial: FrozenTrial) -> tuple[float, float] | None:
    """(step, value) of the deepest measurement; None where a trial tells a model nothing. The end is at step infinity."""
    if trial.state is TrialState.FAIL or infeasible(trial):
        return None
    if trial.state is TrialState.COMPLETE:
        return math.inf, trial.values[0]
    return max(trial.intermediate_values.items(), default=None)


def estimates(trials: Sequence[FrozenTrial], sign: float) -> dict[int, float]:
    """Value by trial number, to be minimised, each carried from the step where the trial stands to the deepest of any."""
    ends = {trial.number: last for trial in trials if (last := _last(trial)) is not None}
    levels = sorted({step for step, _ in ends.values()})
    curves = [
        dict(trial.intermediate_values) | ({math.inf: trial.values[0]} if trial.state is TrialState.COMPLETE else {})
        for trial in trials
        if trial.number in ends
    ]
    gain = dict.fromkeys(levels, 0.0)
    for low, high in reversed(list(pairwise(levels))):
        pairs = [curve[high] - curve[low] for curve in curves if low in curve and high in curve]
        gain[low] = gain[high] + (statistics.median(pairs) if pairs else 0.0)
    return {number: sign * (value + gain[step]) for number, (step, value) in ends.items()}


def warp(values: Floats) -> Floats:
    """Distances to the best (which spreads the floor between walls) or to the worst (which spreads the plain around a pit),
    whichever the better power makes more like a normal distribution; their order does not change."""
    if not values.max() > values.min():
        return values
    near, near_fit = _normal(values - values.min())
    far, far_fit = _normal(values.max() - values)
    if max(near_fit, far_fit) == -math.inf:
        return values
    return near if near_fit >= far_fit else -far


def _normal(distances: Floats) -> tuple[Floats, float]:
    """Through the power that makes them most like a normal distribution (Box and Cox 1964), and how likely they are then, in
    logarithms. What is nearer to 0 than a tenth of the median does not stand out."""
    from scipy.stats import boxcox, boxcox_llf  # takes longer to import than the service needs to start

    middle = float(np.median(distances)) or float(distances.max())
    shares = distances / middle + FLOOR
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of powers that overflow, which are none of the best
        found, power = boxcox(shares)
        fit = float(boxcox_llf(power, shares)) - len(shares) * math.log(middle)  # of what is not yet in shares
    return found, fit if np.isfinite(found).all() and math.isfinite(fit) else -math.inf


def view(space: Space, trials: Sequence[FrozenTrial], sign: float, warped: bool) -> list[FrozenTrial]:
    """The trials as a process is shown them: the best and the latest with values, infeasible ones with a constraint, running
    ones without either.

    Args:
        warped: see warped values. Asks take turns, so that neither view holds a study up.
    """
    values = estimates(trials, sign)
    known = [trial for trial in trials if trial.number in values]
    if len(known) > SHOWN:
        best = {trial.number for trial in sorted(known, key=lambda trial: values[trial.number])[: SHOWN // 2]}
        others = [trial for trial in known if trial.number not in best]
        known = [trial for trial in known if trial.number in best] + others[-(SHOWN - len(best)) :]
    told = np.array([values[trial.number] for trial in known])
    told = warp(told) if warped else told
    barred = [trial for trial in trials if trial.state.is_finished() and infeasible(trial)][-SHOWN // 4 :]
    shown = [_shown(space, trial, float(value), -1.0 if barred else None) for trial, value in zip(known, told, strict=True)]
    shown += [_shown(space, trial, float(np.median(told)), 1.0) for trial in barred]
    pending = [trial for trial in trials if trial.state is TrialState.RUNNING and trial.number not in values]
    return shown + [_shown(space, trial, None, None) for trial in pending]


def _shown(space: Space, trial: FrozenTrial, value: float | None, excess: float | None) -> FrozenTrial:
    paths = [path for path in space.parameters if path in trial.params]
    return create_trial(
        state=TrialState.RUNNING if value is None else TrialState.COMPLETE,
        value=value,
        params={path: trial.params[path] for path in paths},
        distributions={path: space.distributions[path] for path in paths},
        constraints=None if excess is None else {"limits": excess},
    )

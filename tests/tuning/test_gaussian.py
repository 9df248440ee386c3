"""What a Gaussian process is shown of a study, and which branch of a space it is asked about."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from optuna.study import Study, create_study
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuning import gaussian
from tuning.parameters import ChoiceParameter, FloatParameter, IntParameter
from tuning.space import Point, Space

LINE = Space({"x": FloatParameter(type="float", low=0.0, high=1.0)})
CONDITIONAL = Space(
    {
        "training.optimizer": ChoiceParameter(type="choice", choices=("adamw", "muon")),
        "training.muon_momentum": FloatParameter(type="float", low=0.0, high=1.0, when={"training.optimizer": "muon"}),
        "training.dropout": FloatParameter(type="float", low=0.0, high=1.0),
    }
)


class History:
    def __init__(self, space: Space = LINE) -> None:
        self.space = space
        self._study: Study = create_study(storage=InMemoryStorage())

    def add(
        self,
        point: Point,
        value: float | None = None,
        curve: Mapping[int, float] | None = None,
        state: TrialState = TrialState.COMPLETE,
        excess: float | None = None,
    ) -> "History":
        trial = create_trial(
            state=state,
            value=value,
            params=self.space.encode(point),
            distributions={path: self.space.distributions[path] for path in point},
            intermediate_values=dict(curve or {}),
            constraints=None if excess is None else {"memory": excess},
        )
        self._study.add_trial(trial)
        return self

    @property
    def trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def suggest(self, seed: int = 0, attempt: int = 0, startup: int | None = None) -> Point:
        return gaussian.suggest(self.space, self.trials, 1.0, seed, len(self.trials), attempt, startup)


# -- values ------------------------------------------------------------------------------------------------------------


def test_a_stopped_trial_counts_as_if_it_had_gained_what_others_gained() -> None:
    history = History()
    history.add({"x": 0.1}, 5.0, {10: 9.0, 30: 6.0})
    history.add({"x": 0.2}, 6.0, {10: 10.0, 30: 8.0})
    history.add({"x": 0.3}, None, {10: 9.5}, TrialState.PRUNED)
    history.add({"x": 0.4}, None, {10: 9.5, 30: 7.0}, TrialState.RUNNING)
    # From step 10 to 30 others gained 3, 2 and 2.5, from 30 to the end 1 and 2.
    assert gaussian.estimates(history.trials, 1.0) == {0: 5.0, 1: 6.0, 2: 9.5 - 2.5 - 1.5, 3: 7.0 - 1.5}
    assert gaussian.estimates(history.trials, -1.0) == {0: -5.0, 1: -6.0, 2: -5.5, 3: -5.5}


def test_trials_without_a_result_that_counts_have_no_value() -> None:
    history = History().add({"x": 0.1}, None, {10: 1.0}, TrialState.FAIL).add({"x": 0.2}, 0.0, excess=1.0)
    history.add({"x": 0.3}, None, None, TrialState.RUNNING).add({"x": 0.4}, 2.0, excess=-1.0)
    assert gaussian.estimates(history.trials, 1.0) == {3: 2.0}


@settings(deadline=None)  # the first is slow: it imports
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40))
def test_a_warp_keeps_the_order(values: list[float]) -> None:
    given_N = np.round(np.array(values), 3)
    warped_N = gaussian.warp(given_N)
    assert np.isfinite(warped_N).all()
    in_order = warped_N[np.argsort(given_N, kind="stable")]
    assert (np.diff(in_order) >= -1e-9 * np.abs(in_order[1:])).all()


@pytest.mark.parametrize("skewed", [np.exp(np.linspace(0, 12, 30)), -np.exp(np.linspace(-6, 4, 30))], ids=["walls", "a pit"])
def test_a_warp_makes_values_less_skewed(skewed: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    def skew(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        return abs(float((((values - values.mean()) / values.std()) ** 3).mean()))

    assert skew(gaussian.warp(skewed)) < 0.2 * skew(skewed)


# -- the view ----------------------------------------------------------------------------------------------------------


def test_of_many_trials_the_best_and_the_latest_are_shown() -> None:
    history = History()
    for number in range(gaussian.SHOWN + 100):
        history.add({"x": number / 1000}, float((number * 37) % 311))
    shown = gaussian.view(LINE, history.trials, 1.0, warped=False)
    assert len(shown) == gaussian.SHOWN
    values = sorted(trial.values[0] for trial in history.trials)
    assert set(values[: gaussian.SHOWN // 2]) <= {trial.values[0] for trial in shown}
    assert shown[-1].params == history.trials[-1].params


def test_infeasible_trials_are_shown_as_such_and_running_ones_as_pending() -> None:
    history = History().add({"x": 0.1}, 1.0, excess=-2.0).add({"x": 0.2}, -9.0, excess=3.0).add({"x": 0.3}, 3.0, excess=-1.0)
    history.add({"x": 0.4}, None, None, TrialState.RUNNING)
    shown = {trial.params["x"]: trial for trial in gaussian.view(LINE, history.trials, 1.0, warped=False)}
    assert [shown[x].values for x in (0.1, 0.3)] == [[1.0], [3.0]]
    assert shown[0.2].constraints == {"limits": 1.0}
    assert shown[0.2].values == [2.0]  # the median: nothing that draws
    assert shown[0.4].state is TrialState.RUNNING


# -- branches ----------------------------------------------------------------------------------------------------------


def test_a_branch_is_what_decides_which_parameters_apply() -> None:
    assert gaussian.branches(LINE) == [{}]
    assert gaussian.branches(CONDITIONAL) == [{"training.optimizer": "adamw"}, {"training.optimizer": "muon"}]
    assert set(gaussian.within(CONDITIONAL, {"training.optimizer": "muon"}).parameters) == {
        "training.muon_momentum",
        "training.dropout",
    }
    assert list(gaussian.within(CONDITIONAL, {"training.optimizer": "adamw"}).parameters) == ["training.dropout"]


@pytest.mark.parametrize("parent", [IntParameter(type="int", low=1, high=500), FloatParameter(type="float", low=0.0, high=1.0)])
def test_too_many_branches_are_not_counted_to_the_end(parent: IntParameter | FloatParameter) -> None:
    child = FloatParameter(type="float", low=0.0, high=1.0, when={"model.num_hidden_layers": 1})
    space = Space({"model.num_hidden_layers": parent, "training.dropout": child})
    assert gaussian.branches(space) is None


def test_every_branch_is_begun_and_the_better_one_has_more_of_the_trials() -> None:
    history = History(CONDITIONAL)
    for number in range(40):
        point = history.suggest()
        assert ("training.muon_momentum" in point) == (point["training.optimizer"] == "muon")
        history.add(point, point["training.dropout"] + (0.0 if point["training.optimizer"] == "adamw" else 5.0))
        if number == 2 * gaussian.BRANCH_STARTUP - 1:
            of = [trial.params["training.optimizer"] for trial in history.trials]
            assert of.count("muon") == of.count("adamw") == gaussian.BRANCH_STARTUP
    of = [trial.params["training.optimizer"] for trial in history.trials]
    assert 1.5 < of.count("adamw") / of.count("muon") < 2.5


# -- suggestions -------------------------------------------------------------------------------------------------------


def test_the_same_trials_give_the_same_point_and_another_attempt_another() -> None:
    history = History()
    for x in (0.1, 0.5, 0.9, 0.3):
        history.add({"x": x}, (x - 0.6) ** 2)
    assert history.suggest(startup=3) == history.suggest(startup=3)
    assert history.suggest(startup=3, attempt=1) != history.suggest(startup=3)
    assert history.suggest(startup=3, seed=1) != history.suggest(startup=9, seed=1)


@pytest.mark.parametrize("wall", [0.0, 1e6])
def test_a_minimum_is_found_to_three_digits_in_twenty_trials(wall: float) -> None:
    history = History()
    for _ in range(20):
        x = float(history.suggest(startup=5)["x"])
        history.add({"x": x}, 1 + (x - 0.37) ** 2 + (wall if x > 0.8 else 0.0))
    assert min(abs(trial.params["x"] - 0.37) for trial in history.trials) < 1e-3
    assert math.isclose(min(trial.values[0] for trial in history.trials), 1.0, abs_tol=1e-6)

"""The courses of the recipe: pure functions of the step."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from workers.schedule import Betas, learning_rate
from workers.spec import TrainingSpec

RECIPE = TrainingSpec(learning_rate=1.0, min_learning_rate_ratio=0.1, warmup_steps=4)


def test_warm_up_is_linear() -> None:
    assert [learning_rate(RECIPE, step, 104) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("done", "share"), [(1, 0.01), (25, 0.25), (50, 0.5), (100, 1.0)])
def test_then_a_cosine_down_to_the_floor(done: int, share: float) -> None:
    expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share))
    assert learning_rate(RECIPE, 4 + done - 1, 104) == pytest.approx(expected)


def test_the_last_step_is_at_the_floor_and_it_stays_there() -> None:
    assert learning_rate(RECIPE, 103, 104) == pytest.approx(0.1)
    assert learning_rate(RECIPE, 500, 104) == pytest.approx(0.1)


def test_a_run_shorter_than_its_warm_up_is_all_warm_up() -> None:
    assert learning_rate(RECIPE, 1, 2) == 0.5


def test_the_warm_up_may_be_a_share_of_the_run() -> None:
    recipe = TrainingSpec(learning_rate=1.0, warmup_fraction=0.05)
    assert [learning_rate(recipe, step, 80) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_two_warm_ups_contradict_each_other() -> None:
    with pytest.raises(ValidationError, match="warmup_steps and warmup_fraction are both given"):
        TrainingSpec(warmup_steps=10, warmup_fraction=0.1)


def test_wsd_stays_up_and_falls_to_the_floor_in_its_last_part() -> None:
    recipe = RECIPE.model_copy(update={"learning_rate_schedule": "wsd", "decay_fraction": 0.1})
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[4:90] == [1.0] * 86
    assert rates[90:] == pytest.approx([0.1 + 0.09 * (9 - i) for i in range(10)])


def test_constant_stays_up() -> None:
    recipe = RECIPE.model_copy(update={"learning_rate_schedule": "constant"})
    assert {learning_rate(recipe, step, 100) for step in range(4, 100)} == {1.0}


@given(
    schedule=st.sampled_from(["cosine", "wsd", "constant"]),
    total=st.integers(1, 300),
    warmup=st.integers(0, 50),
    ratio=st.floats(0, 1),
    decay=st.floats(0.01, 1),
)
def test_every_rate_lies_between_nothing_and_the_peak_and_never_rises_again(
    schedule: str, total: int, warmup: int, ratio: float, decay: float
) -> None:
    recipe = TrainingSpec.model_validate(
        {
            "learning_rate": 2.0,
            "learning_rate_schedule": schedule,
            "warmup_steps": warmup,
            "min_learning_rate_ratio": ratio,
            "decay_fraction": decay,
        }
    )
    rates = [learning_rate(recipe, step, total) for step in range(total)]
    assert all(0 <= rate <= 2.0 + 1e-12 for rate in rates)
    behind = rates[warmup:]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(behind))
    if behind and schedule != "constant":
        assert behind[-1] == pytest.approx(2.0 * ratio)


def test_betas_move_on_a_straight_line_and_their_products_with_them() -> None:
    betas = Betas(TrainingSpec(betas=(0.9, 0.999), final_betas=(0.85, 0.99)), 11)
    moments = [betas.at(step) for step in range(11)]
    assert moments[0].betas == (0.9, 0.999)
    assert moments[5].betas == pytest.approx((0.875, 0.9945))
    assert moments[10].betas == pytest.approx((0.85, 0.99))
    assert moments[10].products[0] == pytest.approx(math.prod(m.betas[0] for m in moments))
    assert moments[10].products[1] == pytest.approx(math.prod(m.betas[1] for m in moments))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=10))
def test_a_resumed_run_has_the_very_betas_and_products_of_an_undisturbed_one(steps: list[int]) -> None:
    recipe = TrainingSpec(final_betas=(0.85, 0.99))
    whole = Betas(recipe, 50)
    undisturbed = [whole.at(step) for step in range(61)]
    jumping = Betas(recipe, 50)
    assert [jumping.at(step) for step in steps] == [undisturbed[step] for step in steps]

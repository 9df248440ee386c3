"""What the recipe remembers: tables of how the loss scale and the dropout rate move, and the trip through a checkpoint."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.tiny import tiny_spec
from workers.recipe_state import GROWTH_INTERVAL, INITIAL_SCALE, Dropout, LossScale, RecipeState
from workers.spec import AdaptiveDropout, TrainSpec

COURSE = AdaptiveDropout()


def with_dropout(rate: float, **training: Any) -> TrainSpec:
    spec = tiny_spec(**training)
    return spec.model_copy(update={"model": spec.model.model_copy(update={"dropout": rate})})


@pytest.mark.parametrize(
    ("before", "applied", "after"),
    [
        (LossScale(1024.0), True, LossScale(1024.0, 1)),
        (LossScale(1024.0, GROWTH_INTERVAL - 2), True, LossScale(1024.0, GROWTH_INTERVAL - 1)),
        (LossScale(1024.0, GROWTH_INTERVAL - 1), True, LossScale(2048.0)),
        (LossScale(1024.0, GROWTH_INTERVAL - 1), False, LossScale(512.0)),
        (LossScale(1024.0), False, LossScale(512.0)),
    ],
)
def test_the_loss_scale_doubles_after_enough_clean_steps_and_halves_at_an_overflow(
    before: LossScale, applied: bool, after: LossScale
) -> None:
    assert before.after(applied) == after


def test_the_loss_scale_moves_as_torchs_does() -> None:
    import torch

    ours, theirs = LossScale(INITIAL_SCALE), torch.amp.GradScaler("cpu")
    assert theirs.get_scale() == theirs.scale(torch.ones(())).item() == INITIAL_SCALE
    for step in range(2 * GROWTH_INTERVAL + 50):
        overflows = step in (3, 4, GROWTH_INTERVAL + 20)
        p = torch.nn.Parameter(torch.zeros(1))
        p.grad = torch.full((1,), float("inf") if overflows else 1.0)
        optimizer = torch.optim.SGD([p], lr=0.1)
        theirs.step(optimizer)
        theirs.update()
        ours = ours.after(not overflows)
        assert ours.value == theirs.get_scale()


@pytest.mark.parametrize(
    ("rate", "best", "loss", "after"),
    [
        (0.1, float("inf"), 3.0, 0.1),
        (0.1, 3.0, 3.1, 0.15),
        (0.15, 3.0, 2.9, 0.1),
        (0.3, 3.0, 3.1, 0.3),
        (0.29, 3.0, 3.1, 0.3),
        (0.12, 3.0, 2.9, 0.1),
        (0.2, 3.0, 3.0, 0.25),
        (0.2, 3.0, float("nan"), 0.25),
    ],
    ids=["first", "worse", "better", "highest", "to the highest", "to the lowest", "no better", "no number"],
)
def test_dropout_rises_where_the_held_out_loss_does_and_falls_with_it(
    rate: float, best: float, loss: float, after: float
) -> None:
    moved = Dropout(rate, best).after(loss, COURSE)
    assert moved == Dropout(after, min(best, loss))


@given(st.lists(st.floats(0.1, 20.0), max_size=60), st.sampled_from([0.01, 0.05, 0.07, 0.5]))
def test_dropout_never_leaves_its_bounds(losses: list[float], step: float) -> None:
    course = COURSE.model_copy(update={"step": step})
    dropout = Dropout(course.low)
    for loss in losses:
        dropout = dropout.after(loss, course)
        assert 0.1 <= dropout.rate <= 0.3
    assert dropout.best == min(losses, default=float("inf"))


def test_a_walk_up_and_down_comes_back_to_the_very_rate() -> None:
    dropout = Dropout(0.1, best=3.0)
    for loss in (4.0, 4.0, 4.0, 2.9, 2.8, 2.7):
        dropout = dropout.after(loss, COURSE)
    assert dropout.rate == 0.1


def test_a_run_starts_by_its_spec() -> None:
    assert RecipeState.start(tiny_spec()) == RecipeState(0, 0, None, Dropout(0.0))
    assert RecipeState.start(tiny_spec(precision="bf16")).scale == 1.0
    assert RecipeState.start(tiny_spec(precision="fp16")).scale == 2.0**16
    assert RecipeState.start(with_dropout(0.2)).dropout.rate == 0.2
    adaptive = RecipeState.start(with_dropout(0.2, eval_interval=1, adaptive_dropout={"low": 0.15}))
    assert adaptive.dropout.rate == 0.15


def test_skipped_steps_are_counted_in_a_row_and_updates_in_all() -> None:
    state = RecipeState.start(tiny_spec(precision="fp16"))
    seen = []
    for applied in (True, False, False, True, False):
        state = state.after_step(applied)
        seen.append((state.updates, state.skipped, state.scale / 2**16))
    assert seen == [(1, 0, 1.0), (1, 1, 0.5), (1, 2, 0.25), (2, 0, 0.25), (2, 1, 0.125)]


def test_only_adaptive_dropout_hears_of_evaluations() -> None:
    fixed, adaptive = with_dropout(0.2), tiny_spec(eval_interval=1, adaptive_dropout={})
    state = RecipeState.start(fixed)
    assert state.after_evaluation(3.0, fixed) == state
    moved = RecipeState.start(adaptive).after_evaluation(3.0, adaptive).after_evaluation(3.5, adaptive)
    assert moved.dropout == Dropout(0.15, 3.0)


@pytest.mark.parametrize(
    "spec", [tiny_spec(), tiny_spec(precision="fp16"), with_dropout(0.2), tiny_spec(eval_interval=1, adaptive_dropout={})]
)
def test_a_state_comes_back_from_a_checkpoint_as_it_was(spec: TrainSpec) -> None:
    state = RecipeState.start(spec)
    for applied in (True, False, True):
        state = state.after_step(applied)
    state = state.after_evaluation(3.0, spec).after_evaluation(3.5, spec)
    # Through text, as numbers and names are all that it is made of.
    assert RecipeState.of(spec, json.loads(json.dumps(state.state()))) == state


def test_what_the_spec_fixes_is_the_specs_whatever_the_checkpoint_says() -> None:
    kept = replace(RecipeState.start(with_dropout(0.2)), updates=7)
    assert RecipeState.of(with_dropout(0.1), kept.state()) == replace(kept, dropout=Dropout(0.1))
    # A run that goes on in another type starts with, or without, a scale of its own.
    assert RecipeState.of(tiny_spec(precision="fp16"), kept.state()).loss_scale == LossScale(INITIAL_SCALE)
    scaled = replace(RecipeState.start(tiny_spec(precision="fp16")), updates=7)
    assert RecipeState.of(tiny_spec(), scaled.state()).loss_scale is None

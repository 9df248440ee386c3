"""The learning rate's course, and what decays."""

import math

import pytest
import torch
from torch import nn

from workers.optim import learning_rate, make_optimizer, squared_norm
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


def test_only_matrices_decay() -> None:
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, TrainingSpec(weight_decay=0.5))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model.weight)] == 0.5
    assert decay[id(model.bias)] == 0.0


def test_squared_norms_of_shards_add_up() -> None:
    gradient = torch.arange(12.0)
    whole = squared_norm([gradient])
    parts = squared_norm([gradient[:5]]) + squared_norm([gradient[5:], torch.empty(0)])
    torch.testing.assert_close(whole, parts)
    assert math.isclose(whole.item(), 506.0, rel_tol=1e-6)

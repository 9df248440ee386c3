"""What decays, and Adam with betas that change."""

import math

import pytest
import torch
from torch import nn

from workers.optim import Course, make_optimizer, squared_norm
from workers.schedule import learning_rate
from workers.spec import TrainingSpec


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


def by_hand(start: torch.Tensor, gradients: list[torch.Tensor], training: TrainingSpec) -> torch.Tensor:
    """AdamW as its paper has it, in fp64, each moment corrected by one minus the product of its betas."""
    p, m, v = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
    products = [1.0, 1.0]
    last = training.final_betas or training.betas
    for step, gradient in enumerate(gradients):
        done = step / (len(gradients) - 1)
        first, second = (a + (b - a) * done for a, b in zip(training.betas, last, strict=True))
        products = [products[0] * first, products[1] * second]
        m = first * m + (1 - first) * gradient.double()
        v = second * v + (1 - second) * gradient.double() ** 2
        rate = learning_rate(training, step, len(gradients))
        p = p * (1 - rate * training.weight_decay)
        p = p - rate * (m / (1 - products[0])) / ((v / (1 - products[1])).sqrt() + training.eps)
    return p


@pytest.mark.parametrize("final_betas", [None, (0.85, 0.99), (0.0, 0.5)])
def test_adam_with_changing_betas_is_corrected_by_their_product(final_betas: tuple[float, float] | None) -> None:
    training = TrainingSpec(
        learning_rate=0.02, warmup_steps=3, betas=(0.9, 0.999), final_betas=final_betas, eps=1e-3, weight_decay=0.3
    )
    model = nn.Linear(5, 4, bias=False)
    start = model.weight.detach().clone()
    gradients = [torch.randn(4, 5, generator=torch.Generator().manual_seed(i)) for i in range(30)]
    optimizer = make_optimizer(model, training)
    course = Course(optimizer, training, len(gradients))
    for step, gradient in enumerate(gradients):
        model.weight.grad = gradient.clone()
        assert course.set(step) == learning_rate(training, step, len(gradients))
        optimizer.step()
    torch.testing.assert_close(model.weight.detach().double(), by_hand(start, gradients, training), rtol=1e-5, atol=1e-6)

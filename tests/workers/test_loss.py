"""The chunked head and loss against torch's own and against formulas under autograd; what it holds at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.workers.memory import peak_tensor_bytes
from workers.model.loss import IGNORED, SLICE, linear_cross_entropy

N, D, V = 13, 8, 37


def example(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, head and targets, every fourth of them ignored; spread enough for shares from nothing to nearly one."""
    draw = torch.Generator().manual_seed(seed)
    x_ND, head_VD = torch.randn(N, D, generator=draw).to(dtype), torch.randn(V, D, generator=draw).to(dtype)
    targets_N = torch.randint(0, V, (N,), generator=draw)
    targets_N[::4] = IGNORED
    return x_ND.requires_grad_(), head_VD.requires_grad_(), targets_N


def by_formula(
    x_ND: torch.Tensor, head_VD: torch.Tensor, targets_N: torch.Tensor, label_smoothing: float, focal_gamma: float
) -> torch.Tensor:
    logp = F.linear(x_ND, head_VD).log_softmax(-1)
    total = logp.new_zeros(())
    for row, target in zip(logp, targets_N.tolist(), strict=True):
        if target != IGNORED:
            smoothed = -(1 - label_smoothing) * row[target] - label_smoothing * row.mean()
            total = total + (1 - row[target].exp()) ** focal_gamma * smoothed
    return total


RECIPES = [(0.0, 0.0), (0.1, 0.0), (1.0, 0.0), (0.0, 2.0), (0.0, 0.5), (0.1, 1.0), (0.3, 3.5)]


@pytest.mark.parametrize(
    ("label_smoothing", "focal_gamma", "compiled"),
    [*((*recipe, False) for recipe in RECIPES), (0.0, 0.0, True), (0.1, 1.0, True)],
)
def test_objective_and_gradients_are_the_formulas(label_smoothing: float, focal_gamma: float, compiled: bool) -> None:
    inputs = example()
    expected = by_formula(*inputs, label_smoothing, focal_gamma)
    objective, ce = linear_cross_entropy(
        *inputs, label_smoothing=label_smoothing, focal_gamma=focal_gamma, chunk=13, compiled=compiled
    )
    torch.testing.assert_close(objective, expected)
    torch.testing.assert_close(ce, by_formula(*inputs, 0.0, 0.0).detach())
    assert not ce.requires_grad
    actual = torch.autograd.grad(objective * 0.7, inputs[:2])
    for a, b in zip(actual, torch.autograd.grad(expected * 0.7, inputs[:2]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_without_focus_it_is_torchs_cross_entropy(label_smoothing: float) -> None:
    x_ND, head_VD, targets_N = example(torch.float32)
    logits = F.linear(x_ND, head_VD)
    expected = F.cross_entropy(logits, targets_N, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing)
    objective, _ = linear_cross_entropy(x_ND, head_VD, targets_N, label_smoothing=label_smoothing)
    assert objective.dtype == torch.float32
    torch.testing.assert_close(objective, expected)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    label_smoothing=st.floats(0.0, 1.0),
    focal_gamma=st.just(0.0) | st.floats(0.25, 5.0),
    chunk=st.integers(1, N + 3),
)
def test_chunk_borders_change_nothing(seed: int, label_smoothing: float, focal_gamma: float, chunk: int) -> None:
    inputs = example(seed=seed)
    expected = by_formula(*inputs, label_smoothing, focal_gamma)
    objective, _ = linear_cross_entropy(*inputs, label_smoothing=label_smoothing, focal_gamma=focal_gamma, chunk=chunk)
    torch.testing.assert_close(objective, expected)
    actual = torch.autograd.grad(objective, inputs[:2])
    for a, b in zip(actual, torch.autograd.grad(expected, inputs[:2]), strict=True):
        torch.testing.assert_close(a, b)


def test_ignored_targets_weigh_nothing() -> None:
    x_ND, head_VD, targets_N = example()
    objective, ce = linear_cross_entropy(
        x_ND, head_VD, torch.full_like(targets_N, IGNORED), label_smoothing=0.1, focal_gamma=2.0
    )
    assert (objective.item(), ce.item()) == (0.0, 0.0)
    for gradient in torch.autograd.grad(objective, (x_ND, head_VD)):
        assert gradient.count_nonzero() == 0

    valid = targets_N != IGNORED
    alone, _ = linear_cross_entropy(x_ND[valid], head_VD, targets_N[valid], focal_gamma=2.0)
    among, _ = linear_cross_entropy(x_ND, head_VD, targets_N, focal_gamma=2.0)
    torch.testing.assert_close(among, alone)
    (dx_ND,) = torch.autograd.grad(among, x_ND)
    assert (dx_ND.count_nonzero(-1) > 0).tolist() == valid.tolist()


@pytest.mark.parametrize("focal_gamma", [0.5, 1.0, 2.0])
def test_a_target_that_is_certain_has_no_gradient_and_no_nan(focal_gamma: float) -> None:
    x_ND, head_VD = torch.eye(2).mul(100).requires_grad_(), torch.eye(2, requires_grad=True)
    objective, _ = linear_cross_entropy(x_ND, head_VD, torch.tensor([0, 1]), focal_gamma=focal_gamma)
    assert objective == 0.0
    for gradient in torch.autograd.grad(objective, (x_ND, head_VD)):
        torch.testing.assert_close(gradient, torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("dtype", "tolerance", "compiled"),
    [(torch.bfloat16, 2e-2, False), (torch.bfloat16, 2e-2, True), (torch.float16, 2e-3, False)],
)
def test_half_precision_is_close_and_gradients_keep_their_parameters_type(
    dtype: torch.dtype, tolerance: float, compiled: bool
) -> None:
    x_ND, head_VD, targets_N = example(torch.float32)
    expected = torch.autograd.grad(by_formula(x_ND, head_VD, targets_N, 0.1, 1.0), (x_ND, head_VD))
    narrow_ND = x_ND.detach().to(dtype).requires_grad_()
    objective, ce = linear_cross_entropy(
        narrow_ND, head_VD, targets_N, label_smoothing=0.1, focal_gamma=1.0, chunk=5, compiled=compiled
    )
    assert (objective.dtype, ce.dtype) == (torch.float32, torch.float32)
    dx_ND, dhead_VD = torch.autograd.grad(objective, (narrow_ND, head_VD))
    assert (dx_ND.dtype, dhead_VD.dtype) == (dtype, torch.float32)
    for a, b in zip((dx_ND.float(), dhead_VD), expected, strict=True):
        assert (a - b).norm() < tolerance * b.norm()


def test_small_gradients_survive_fp16_until_the_loss_scale_comes() -> None:
    """With 60,000 equal tokens a share is 1.7e-5: below fp16's normal numbers: rounded before it is scaled it is off."""
    vocabulary = 60_000
    x_ND = torch.ones(1, 2, dtype=torch.float16, requires_grad=True)
    head_VD = torch.zeros(vocabulary, 2, requires_grad=True)
    objective, _ = linear_cross_entropy(x_ND, head_VD, torch.tensor([0]))
    (dhead_VD,) = torch.autograd.grad(objective * 2.0**14, head_VD)
    torch.testing.assert_close(dhead_VD[1:], torch.full((vocabulary - 1, 2), 2.0**14 / vocabulary), rtol=1e-5, atol=0.0)


def test_the_heads_gradient_is_added_up_in_fp32() -> None:
    """One large part and many small ones, each less than half a bf16 step of it."""
    steps = 65
    x_ND = torch.full((steps, 1), 2.0**-9, dtype=torch.bfloat16)
    x_ND[0] = 1.0
    head_VD = torch.zeros(2, 1, requires_grad=True)
    objective, _ = linear_cross_entropy(x_ND, head_VD, torch.zeros(steps, dtype=torch.long), chunk=1)
    (dhead_VD,) = torch.autograd.grad(objective, head_VD)
    torch.testing.assert_close(dhead_VD[:, 0], torch.tensor([-0.5, 0.5]) * (1 + 64 * 2.0**-9), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("head_dtype", [torch.float32, torch.bfloat16])
def test_slices_of_the_heads_gradient_meet(head_dtype: torch.dtype) -> None:
    """bf16 as a sharding wrapper gathers it, or an fp32 master."""
    vocabulary = 2 * SLICE + 5
    draw = torch.Generator().manual_seed(0)
    x_ND = torch.randn(6, D, generator=draw).bfloat16()
    head_VD = torch.randn(vocabulary, D, generator=draw).to(head_dtype).requires_grad_()
    targets_N = torch.tensor([0, SLICE - 1, SLICE, 2 * SLICE - 1, 2 * SLICE, vocabulary - 1])
    objective, _ = linear_cross_entropy(x_ND, head_VD, targets_N, chunk=4)
    (actual,) = torch.autograd.grad(objective, head_VD)
    (expected,) = torch.autograd.grad(by_formula(x_ND.float(), head_VD.float(), targets_N, 0.0, 0.0), head_VD)
    assert actual.dtype == head_dtype
    torch.testing.assert_close(actual.float(), expected.float(), rtol=5e-2, atol=1e-3)


@pytest.mark.parametrize("trained", ["x", "head"])
def test_only_what_is_trained_gets_a_gradient(trained: str) -> None:
    x_ND, head_VD, targets_N = example()
    expected = torch.autograd.grad(by_formula(x_ND, head_VD, targets_N, 0.0, 0.0), (x_ND, head_VD))
    frozen = head_VD if trained == "x" else x_ND
    frozen.requires_grad_(False)
    linear_cross_entropy(x_ND, head_VD, targets_N)[0].backward()
    assert frozen.grad is None
    actual, wanted = (x_ND.grad, expected[0]) if trained == "x" else (head_VD.grad, expected[1])
    torch.testing.assert_close(actual, wanted)


def test_a_tied_head_gets_both_its_gradients() -> None:
    _, head_VD, targets_N = example()
    tokens_N = torch.arange(N)
    expected = torch.autograd.grad(by_formula(F.embedding(tokens_N, head_VD), head_VD, targets_N, 0.0, 0.0), head_VD)
    objective, _ = linear_cross_entropy(F.embedding(tokens_N, head_VD), head_VD, targets_N)
    torch.testing.assert_close(torch.autograd.grad(objective, head_VD), expected)


def test_the_same_to_the_bit_every_time() -> None:
    inputs = example(torch.float32)

    def once() -> list[torch.Tensor]:
        objective, ce = linear_cross_entropy(*inputs, focal_gamma=1.0, chunk=4)
        return [objective, ce, *torch.autograd.grad(objective, inputs[:2])]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


def test_it_can_be_differentiated_only_once() -> None:
    objective, _ = linear_cross_entropy(*example())
    objective.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        objective.backward()


@pytest.mark.parametrize("grad", [True, False])
def test_never_more_than_a_chunk_of_logits(grad: bool) -> None:
    tokens, hidden, vocabulary, chunk = 256, 4, 1000, 32
    x_ND = torch.randn(tokens, hidden, requires_grad=grad)
    head_VD = torch.randn(vocabulary, hidden, requires_grad=grad)
    targets_N = torch.arange(tokens)

    def step(size: int) -> None:
        objective, _ = linear_cross_entropy(x_ND, head_VD, targets_N, chunk=size)
        if grad:
            objective.backward()

    gradients = 4 * (x_ND.numel() + head_VD.numel()) if grad else 0
    peak = peak_tensor_bytes(lambda: step(chunk))
    # Logits, and with gradients what the softmax makes of them.
    assert peak <= gradients + (2 if grad else 1) * 4 * chunk * vocabulary + 2**14
    assert peak < math.ceil(peak_tensor_bytes(lambda: step(tokens)) / 4)


def test_evaluation_computes_no_gradient() -> None:
    x_ND, head_VD, targets_N = example(torch.float32)
    with_gradient, _ = linear_cross_entropy(x_ND, head_VD, targets_N)
    with torch.no_grad():
        objective, ce = linear_cross_entropy(x_ND, head_VD, targets_N)
        without = peak_tensor_bytes(lambda: linear_cross_entropy(x_ND, head_VD, targets_N, chunk=1))
    assert torch.equal(objective, with_gradient.detach())
    assert (objective.requires_grad, ce.requires_grad) == (False, False)
    assert without < head_VD.numel() * 4

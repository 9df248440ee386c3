"""Muon: which matrices there are, what a step does to each of them, and that the mesh changes nothing."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from workers.mesh import Membership, Mesh
from workers.muon import Matrices, Muon, Split, logical_matrices, newton_schulz, orthogonalise_
from workers.optim import Course, Optimizers, local, make_optimizer
from workers.schedule import learning_rate
from workers.spec import TrainingSpec

EXPERTS, WIDTH, HIDDEN, GROUPS, QUERIES, HEAD = 3, 6, 8, 2, 3, 4


def whole(w: torch.Tensor) -> Sequence[Matrices]:
    return [Matrices(w, w.ndim - 2)]


def experts_gate_up(w: torch.Tensor) -> Sequence[Matrices]:
    """[E, I, 2, H]"""
    return [Matrices(w[:, :, 0], 1), Matrices(w[:, :, 1], 1)]


def qkv(w: torch.Tensor) -> Sequence[Matrices]:
    """[G, queries a group + 2, d, D]: each of q, k and v is one matrix with its groups' rows together."""
    return [Matrices(w[:, :-2]), Matrices(w[:, -2]), Matrices(w[:, -1])]


FUSED: dict[str, tuple[tuple[int, ...], Split, int]] = {
    "experts.gate_up": ((EXPERTS, WIDTH, 2, HIDDEN), experts_gate_up, 2 * EXPERTS),
    "experts.down": ((EXPERTS, HIDDEN, WIDTH), whole, EXPERTS),
    "dense.gate_up": ((WIDTH, 2, HIDDEN), lambda w: [Matrices(w[:, 0]), Matrices(w[:, 1])], 2),
    "qkv": ((GROUPS, QUERIES + 2, HEAD, HIDDEN), qkv, 3),
}


class Fused(nn.Module):
    """Two fused parameters that split, and a router that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(draw(EXPERTS, WIDTH, 2, HIDDEN, seed=1))
        self.qkv = nn.Parameter(draw(GROUPS, QUERIES + 2, HEAD, HIDDEN, seed=2))
        self.router = nn.Parameter(draw(EXPERTS, HIDDEN, seed=3))

    def logical_matrices(self) -> dict[str, Split]:
        return {"gate_up": experts_gate_up, "qkv": qkv}


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sizes(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(matrix.double())


@given(rows=st.integers(1, 24), columns=st.integers(1, 24), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 1000))
def test_newton_schulz_brings_singular_values_near_one_and_keeps_the_vectors(
    rows: int, columns: int, scale: float, seed: int
) -> None:
    u, _, v = torch.linalg.svd(draw(rows, columns, seed=seed).double(), full_matrices=False)
    spectrum = torch.logspace(0, -1.5, min(rows, columns)).double()
    found = newton_schulz((scale * (u * spectrum) @ v).float()[None])[0].double()
    inner = u.mT @ found @ v.mT
    assert torch.all((inner.diag() >= 0.68) & (inner.diag() <= 1.21))
    torch.testing.assert_close(inner, inner.diag().diag(), atol=2e-3, rtol=0)


def test_newton_schulz_in_bf16_is_as_good_for_this_purpose() -> None:
    found = sizes(newton_schulz(draw(2, 16, 48, seed=0).bfloat16())).flatten()
    assert 0.65 < found.min() <= found.max() < 1.25


def test_a_zero_matrix_stays_zero_and_spoils_no_other() -> None:
    x = torch.stack([torch.zeros(4, 6), draw(4, 6, seed=0)])
    both = newton_schulz(x)
    assert torch.equal(both[0], torch.zeros(4, 6))
    torch.testing.assert_close(both[1], newton_schulz(x[1:])[0])


@pytest.mark.parametrize(("shape", "split", "count"), FUSED.values(), ids=FUSED.keys())
def test_each_matrix_of_a_fused_parameter_is_orthogonalised_as_if_alone(
    shape: tuple[int, ...], split: Split, count: int
) -> None:
    fused = draw(*shape, seed=5)
    expected = fused.clone()
    orthogonalise_(split(fused))
    matrices = 0
    for m in split(expected):
        rows, columns = m.shape
        for alone in m.view.reshape(-1, rows, columns) if m.batch else [m.view.reshape(rows, columns)]:
            alone = 0.2 * math.sqrt(max(rows, columns)) * newton_schulz(alone[None])[0]
            (found,) = [f for f in parts(split(fused)) if f.shape == alone.shape and torch.allclose(f, alone, atol=1e-5)]
            assert found.square().mean().sqrt() == pytest.approx(0.2, rel=0.2)
            matrices += 1
    assert matrices == count


def parts(matrices: Sequence[Matrices]) -> list[torch.Tensor]:
    return [one for m in matrices for one in m.view.reshape(m.count, *m.shape)]


def step_by_hand(
    p: torch.Tensor, average: torch.Tensor, gradient: torch.Tensor, lr: float, decay: float, momentum: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One matrix [rows, columns], one step, as the papers have it."""
    average = momentum * average + (1 - momentum) * gradient
    x = momentum * average + (1 - momentum) * gradient
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return p - lr * decay * p - lr * 0.2 * max(p.shape) ** 0.5 * x, average


def test_steps_against_a_naive_reference() -> None:
    p = nn.Parameter(draw(5, 7, seed=0))
    expected, average = p.detach().double(), torch.zeros(5, 7).double()
    muon = Muon({"p": p}, {"p": whole}, lr=0.03, weight_decay=0.2, momentum=0.9)
    for seed in range(1, 5):
        p.grad = draw(5, 7, seed=seed)
        expected, average = step_by_hand(expected, average, p.grad.double(), 0.03, 0.2, 0.9)
        muon.step()
    torch.testing.assert_close(p.detach().double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(muon.state[p]["momentum_buffer"].double(), average, rtol=1e-5, atol=1e-6)


def test_what_no_module_names_stays_with_adamw() -> None:
    model = nn.Sequential(Fused(), nn.Linear(3, 2))
    assert set(logical_matrices(model)) == {"0.gate_up", "0.qkv"}
    optimizer = make_optimizer(model, TrainingSpec(optimizer="muon", muon_momentum=0.8))
    kinds = {name: set(optimizer.state[p]) - {"step"} for name, p in model.named_parameters()}
    adam = {"exp_avg", "exp_avg_sq"}
    assert kinds == {
        "0.gate_up": {"momentum_buffer"},
        "0.qkv": {"momentum_buffer"},
        "0.router": adam,
        "1.weight": adam,
        "1.bias": adam,
    }
    (momentum,) = [group["momentum"] for group in optimizer.param_groups if "momentum" in group]
    assert momentum == 0.8


def test_a_model_that_names_no_matrices_cannot_have_muon() -> None:
    with pytest.raises(ValueError, match="Linear names no logical matrices"):
        make_optimizer(nn.Linear(3, 2), TrainingSpec(optimizer="muon"))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (lambda w: [Matrices(w[:, :-2].flatten(0, 2)), *qkv(w)[1:]], "a copy, not a view"),
        (lambda w: qkv(w)[:2], "do not cover"),
    ],
)
def test_a_split_that_loses_updates_is_refused(split: Split, message: str) -> None:
    p = nn.Parameter(draw(GROUPS, QUERIES + 2, HEAD, HIDDEN, seed=0))
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=message):
        Muon({"p": p}, {"p": split}, lr=0.1, weight_decay=0.0).step()


def test_the_learning_rates_course_drives_both_kinds_and_decay_is_the_spec_s() -> None:
    training = TrainingSpec(optimizer="muon", warmup_steps=4, final_betas=(0.8, 0.9), weight_decay=0.3)
    optimizer = make_optimizer(Fused(), training)
    Course(optimizer, training, 10).set(2)
    muon, adamw = optimizer.param_groups
    assert (muon["lr"], muon["weight_decay"]) == (learning_rate(training, 2, 10), 0.3)
    assert adamw["lr"] * adamw["weight_decay"] == pytest.approx(muon["lr"] * 0.3)


def fit(model: Fused, optimizer: Optimizers, first: int, last: int, total: int, training: TrainingSpec) -> list[float]:
    """Steps of a regression to fixed values; its loss before each."""
    losses, course = [], Course(optimizer, training, total)
    for step in range(first, last):
        loss = sum((p - draw(*p.shape, seed=50 + i)).square().sum() for i, p in enumerate(model.parameters()))
        loss.backward()
        course.set(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def recipe(moments_dtype: str = "fp32") -> TrainingSpec:
    return TrainingSpec.model_validate(
        {"optimizer": "muon", "learning_rate": 0.3, "weight_decay": 0.0, "moments_dtype": moments_dtype}
    )


@pytest.mark.parametrize("moments_dtype", ["fp32", "bf16"])
def test_it_trains(moments_dtype: str) -> None:
    training, model = recipe(moments_dtype), Fused()
    losses = fit(model, make_optimizer(model, training), 0, 120, 120, training)
    assert losses[-1] < 0.02 * losses[0]


def test_large_parameters_go_one_at_a_time_and_come_out_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for batch in (1, 2**26):
        monkeypatch.setattr("workers.muon.BATCH_ELEMENTS", batch)
        model = Fused()
        fit(model, make_optimizer(model, recipe()), 0, 3, 3, recipe())
        found.append(model)
    for a, b in zip(*(m.parameters() for m in found), strict=True):
        torch.testing.assert_close(a, b)


def run_steps(member: Membership, moments_dtype: str) -> dict[str, list[torch.Tensor]]:
    """Each parameter and its moments, whole, after three steps of a model that is sharded unless the member is alone."""
    mesh, model, training = Mesh.form(member, use_gpu=False), Fused(), recipe(moments_dtype)
    if mesh.workers is not None:
        fully_shard(model, mesh=mesh.workers)
        assert local(model.gate_up).shape[0] == 2 - member.rank, "three experts on two ranks"
    optimizer = make_optimizer(model, training)
    course = Course(optimizer, training, 3)
    for step in range(3):
        for i, p in enumerate(model.parameters()):
            p.grad = draw(*p.shape, seed=10 * step + i)
            if isinstance(p, DTensor):
                p.grad = distribute_tensor(p.grad, p.device_mesh, p.placements, src_data_rank=None)
        course.set(step)
        optimizer.step()
    tensors = {name: [p, *(v for k, v in optimizer.state[p].items() if k != "step")] for name, p in model.named_parameters()}
    result = {
        name: [(v.full_tensor() if isinstance(v, DTensor) else v).detach().clone() for v in values]
        for name, values in tensors.items()
    }
    mesh.dissolve()
    return result


@pytest.mark.gloo
@pytest.mark.parametrize("moments_dtype", ["fp32", "bf16"])
def test_two_ranks_do_what_one_does(gloo_pool: Any, moments_dtype: str) -> None:
    alone = run_steps(Membership(), moments_dtype)
    for rank in gloo_pool.run(run_steps, moments_dtype):
        for name, values in rank.items():
            torch.testing.assert_close(values, alone[name], rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")

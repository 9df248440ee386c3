"""What decays, Adam with betas that change, and moments in bf16."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tests.workers.tiny import VOCAB, steps, tiny_spec
from workers.checkpoint import CheckpointStore
from workers.engine import Engine
from workers.mesh import Membership, Mesh
from workers.model.decoder import Decoder
from workers.muon import Matrices
from workers.optim import Course, Optimizers, RoundedAdamW, make_optimizer, squared_norm
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


def adamw(p: torch.Tensor, m: torch.Tensor, v: torch.Tensor, gradient: torch.Tensor, step: int, training: TrainingSpec) -> None:
    """One AdamW step in fp64, in place; ``step`` from 1."""
    first, second = training.betas
    m.mul_(first).add_((1 - first) * gradient)
    v.mul_(second).add_((1 - second) * gradient**2)
    p.mul_(1 - training.learning_rate * training.weight_decay)
    p.sub_(training.learning_rate * m / (1 - first**step) / ((v / (1 - second**step)).sqrt() + training.eps))


ROUNDED = TrainingSpec(
    moments_dtype="bf16", learning_rate=0.02, weight_decay=0.3, eps=1e-3, learning_rate_schedule="constant", warmup_steps=0
)


def rounded(training: TrainingSpec = ROUNDED, rows: int = 4) -> tuple[nn.Linear, Optimizers]:
    model = nn.Linear(5, rows)
    with torch.no_grad():
        model.weight.copy_(draw(rows, 5, seed=0))
        model.bias.copy_(draw(rows, seed=1))
    return model, make_optimizer(model, training)


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_moments_in_bf16_take_half_the_memory_and_parameters_stay_fp32() -> None:
    model, optimizer = rounded()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {state[key].dtype for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}
    assert not any(isinstance(part, RoundedAdamW) for part in rounded(TrainingSpec())[1].parts), "by default they are fp32"


def test_each_step_is_adamw_s_and_each_moment_a_neighbour_of_the_exact_one() -> None:
    model, optimizer = rounded()
    course = Course(optimizer, ROUNDED, 30)
    for step in range(30):
        before = {
            p: [x.detach().double() for x in (p, optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"])]
            for p in model.parameters()
        }
        for i, p in enumerate(model.parameters()):
            p.grad = draw(*p.shape, seed=2 * step + i)
            training = ROUNDED if p.ndim == 2 else ROUNDED.model_copy(update={"weight_decay": 0.0})
            adamw(*before[p], p.grad.double(), step + 1, training)
        course.set(step)
        optimizer.step()
        for p, (value, m, v) in before.items():
            torch.testing.assert_close(p.detach().double(), value, rtol=1e-5, atol=1e-6)
            for name, exact in (("exp_avg", m), ("exp_avg_sq", v)):
                error = (optimizer.state[p][name].double() - exact).abs()
                assert torch.all(error <= exact.abs() * 2**-7 + 1e-7), name


def test_a_second_moment_moves_where_rounding_to_the_nearest_would_hold_it() -> None:
    # Each step's change, 0.001 of a value that has 8 bits, is lost when rounded to the nearest. Its mean must be exact.
    training = ROUNDED.model_copy(update={"betas": (0.9, 0.999)})
    model, optimizer = rounded(training, rows=2000)
    state = optimizer.state[model.weight]
    state["exp_avg_sq"].fill_(1.0)
    state["exp_avg"].fill_(-1.0)
    for _ in range(20):
        model.weight.grad = torch.full_like(model.weight, 0.5)
        optimizer.step()
    for name, exact in (("exp_avg_sq", 0.25 + 0.75 * 0.999**20), ("exp_avg", 0.5 - 1.5 * 0.9**20)):
        values = state[name].double()
        assert values.std() > 0
        assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(values.numel()), name
    m, v = (state[name].double().flatten() - state[name].double().mean() for name in ("exp_avg", "exp_avg_sq"))
    assert abs((m * v).mean() / (m.std() * v.std())) < 4 / math.sqrt(m.numel()), "both are rounded by bits of their own"


def run(optimizer: Optimizers, model: nn.Module, first: int, last: int) -> None:
    for step in range(first, last):
        for i, p in enumerate(model.parameters()):
            gradient = draw(*p.shape, seed=2 * step + i)
            if isinstance(p, DTensor):
                gradient = distribute_tensor(gradient, p.device_mesh, p.placements, src_data_rank=None)
            p.grad = gradient
        optimizer.step()


def tensors(model: nn.Module, optimizer: Optimizers) -> dict[str, torch.Tensor]:
    found = {
        f"{name}.{key}": value
        for name, p in model.named_parameters()
        for key, value in {"value": p.detach(), **optimizer.state[p]}.items()
        if key != "step"
    }
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).clone() for name, t in found.items()}


def test_a_restart_rounds_as_the_undisturbed_run_did_and_another_seed_does_not() -> None:
    model, optimizer = rounded()
    run(optimizer, model, 0, 3)
    halfway = tensors(model, optimizer)
    run(optimizer, model, 3, 6)
    again, resumed = rounded()
    with torch.no_grad():
        for name, p in again.named_parameters():
            p.copy_(halfway[f"{name}.value"])
            for key in ("exp_avg", "exp_avg_sq"):
                resumed.state[p][key].copy_(halfway[f"{name}.{key}"])
            resumed.state[p]["step"].fill_(3)
    run(resumed, again, 3, 6)
    assert_equal(tensors(again, resumed), tensors(model, optimizer))
    other, differs = rounded(ROUNDED.model_copy(update={"seed": 1}))
    run(differs, other, 0, 6)
    assert not torch.equal(differs.state[other.weight]["exp_avg"], optimizer.state[model.weight]["exp_avg"])


def test_pieces_in_a_cpu_s_cache_are_only_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, in_one = rounded(rows=7)
    run(in_one, whole, 0, 3)
    monkeypatch.setattr("workers.optim.CHUNK_ELEMENTS", 10)
    cut, in_pieces = rounded(rows=7)
    run(in_pieces, cut, 0, 3)
    assert_equal(tensors(cut, in_pieces), tensors(whole, in_one))


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def run_sharded(member: Membership, rows: int) -> dict[str, torch.Tensor]:
    mesh = Mesh.form(member, use_gpu=False)
    model, _ = rounded(rows=rows)
    if mesh.workers is not None:
        fully_shard(model, mesh=mesh.workers)
    optimizer = make_optimizer(model, ROUNDED)
    run(optimizer, model, 0, 4)
    found = tensors(model, optimizer)
    mesh.dissolve()
    return found


@pytest.mark.gloo
@pytest.mark.parametrize("rows", [4, 5, 1])
def test_shards_round_as_the_whole_does(gloo_pool: Any, rows: int) -> None:
    alone = run_sharded(Membership(), rows)
    for rank in gloo_pool.run(run_sharded, rows):
        for name, value in rank.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("optimizer", "moments_dtype"), [("adamw", "bf16"), ("muon", "fp32"), ("muon", "bf16")])
def test_an_engine_saves_and_loads_what_moments_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, moments_dtype: str
) -> None:
    def logical_matrices(model: Decoder) -> dict[str, Any]:
        return {n: lambda w: [Matrices(w)] for n, p in model.named_parameters() if n.startswith("blocks") and p.ndim == 2}

    monkeypatch.setattr(Decoder, "logical_matrices", logical_matrices, raising=False)
    spec = tiny_spec(optimizer=optimizer, moments_dtype=moments_dtype)
    first = Engine.build(spec, Membership(), VOCAB)
    steps(first, 0, 2)
    store = CheckpointStore(tmp_path, keep_last=1, asynchronous=False)
    store.save(2, first.state_dict())
    moments = {key for values in first.state_dict()["optimizer"].values() for key in values}
    assert moments == {"exp_avg", "exp_avg_sq"} | ({"momentum_buffer"} if optimizer == "muon" else set())
    expected = steps(first, 2, 4)
    second = Engine.build(spec, Membership(), VOCAB)
    state = second.state_dict()
    newest = store.latest()
    assert newest is not None
    store.load(newest, state)
    second.load_state_dict(state)
    assert steps(second, 2, 4) == expected
    third = Engine.build(spec, Membership(), VOCAB, second.full_state())
    assert steps(third, 4, 5) == steps(first, 4, 5)
    store.close()

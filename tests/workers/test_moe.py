"""The mixture of experts against a loop over experts and against formulas; what its router may choose, and what it counts."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from workers.compat_torch import create_group, create_mesh
from workers.model.feed_forward import SwiGLU
from workers.model.moe import MoE, Statistics
from workers.model.router import choose
from workers.model.spec import ModelSpec
from workers.muon import logical_matrices
from workers.recompute import Mode, apply_recompute

ROWS, LENGTH, HIDDEN = 3, 8, 32
SMALL = ModelSpec(hidden_size=HIDDEN, num_attention_heads=4, num_key_value_heads=2, moe_intermediate_size=16)
SPECS = {
    "sigmoid": SMALL,
    "softmax": SMALL.model_copy(update={"scoring_func": "softmax", "norm_topk_prob": False, "n_shared_experts": 0}),
    "scaled": SMALL.model_copy(update={"routed_scaling_factor": 2.5, "n_shared_experts": 2, "num_experts_per_tok": 3}),
    "groups": SMALL.model_copy(update={"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}),
    "softmax groups": SMALL.model_copy(update={"scoring_func": "softmax", "n_group": 2, "topk_group": 1}),
    "16 top 2": SMALL.model_copy(update={"n_routed_experts": 16}),
    "256 top 8": SMALL.model_copy(
        update={"n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "moe_intermediate_size": 8}
    ),
}
LOSSES = {"router_aux_loss_coef": 1e-4, "router_z_loss_coef": 1e-3}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(spec: ModelSpec, std: float = 0.3, **updates: Any) -> MoE:
    """Random everywhere, the bias too."""
    moe = MoE(spec.model_copy(update=updates))
    for i, tensor in enumerate(moe.state_dict().values()):
        tensor.copy_(randn(*tensor.shape, seed=i) * std)
    return moe


def example(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of which one is full, one padded and one nothing but padding."""
    valid_BT = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    valid_BT[1, 5:], valid_BT[2] = False, False
    return randn(ROWS, LENGTH, HIDDEN).to(dtype).requires_grad_(), valid_BT


def by_loop(moe: MoE, x_ND: torch.Tensor) -> tuple[torch.Tensor, list[list[int]], torch.Tensor]:
    """Token by token, expert by expert: outputs, choices and scores."""
    spec, rows, choices = moe.spec, [], []
    logits_NE = x_ND.float() @ moe.router.to(x_ND.dtype).float().T
    scores_NE = 1 / (1 + (-logits_NE).exp()) if spec.scoring_func == "sigmoid" else logits_NE.exp()
    if spec.scoring_func == "softmax":
        scores_NE = scores_NE / scores_NE.sum(-1, keepdim=True)
    for x, scores in zip(x_ND, scores_NE, strict=True):
        chosen = best_experts((scores.detach() + moe.bias).tolist(), spec)
        weights = scores[chosen]
        weights = spec.routed_scaling_factor * (weights / weights.sum() if spec.norm_topk_prob else weights)
        y = torch.stack([dense(x, moe.gate_up[e], moe.down[e]).float() * w for e, w in zip(chosen, weights, strict=True)])
        row = y.sum(0).to(x.dtype)
        rows.append(row if moe.shared is None else row + dense(x, moe.shared.gate_up, moe.shared.down))
        choices.append(chosen)
    return torch.stack(rows), choices, scores_NE


def best_experts(scores: list[float], spec: ModelSpec) -> list[int]:
    size = len(scores) // spec.n_group
    groups = [range(g * size, (g + 1) * size) for g in range(spec.n_group)]
    if spec.topk_group < spec.n_group:
        groups.sort(key=lambda group: -sum(sorted(scores[e] for e in group)[-2:]))
        groups = groups[: spec.topk_group]
    return sorted((e for group in groups for e in group), key=lambda e: -scores[e])[: spec.num_experts_per_tok]


def dense(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """``gate_up`` [W, 2, D]"""
    gate, up = gate_up.to(x.dtype).unbind(1)
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.to(x.dtype).T


def gradients(y: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad((y * randn(*y.shape, seed=9).to(y.dtype)).sum(), inputs, retain_graph=True)


def test_the_dense_layer_is_its_formula() -> None:
    layer = SwiGLU(HIDDEN, 12)
    for p in layer.parameters():
        p.data.copy_(randn(*p.shape, seed=1))
    x_BTD, _ = example()
    expected = dense(x_BTD, layer.gate_up, layer.down)
    torch.testing.assert_close(layer(x_BTD), expected)
    inputs = [x_BTD, *layer.parameters()]
    for a, b in zip(gradients(layer(x_BTD), inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SPECS)
def test_it_is_a_loop_over_tokens_and_experts(name: str, dtype: torch.dtype) -> None:
    moe, (x_BTD, valid_BT) = filled(SPECS[name]), example(dtype)
    y_BTD, statistics = moe(x_BTD, valid_BT)
    expected_ND, choices, _ = by_loop(moe, x_BTD.flatten(0, 1))
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.1}
    torch.testing.assert_close(y_BTD.flatten(0, 1), expected_ND, **near)
    assert y_BTD.dtype == dtype

    seen = [expert for chosen, valid in zip(choices, valid_BT.flatten().tolist(), strict=True) if valid for expert in chosen]
    assert statistics.counts_E.tolist() == torch.tensor(seen).bincount(minlength=moe.spec.n_routed_experts).tolist()

    inputs = [x_BTD, *moe.parameters()]
    actual, reference = gradients(y_BTD, inputs), gradients(expected_ND.view_as(y_BTD), inputs)
    for a, b in zip(actual, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=near["rtol"], atol=3e-2 * b.abs().max().item() if near["atol"] > 0.01 else 1e-4)


def test_experts_that_nobody_chose_are_no_trouble() -> None:
    moe, (x_BTD, valid_BT) = filled(SMALL), example()
    moe.bias.copy_(torch.tensor([9.0, 9.0, 0, 0, 0, 0, 0, 0]))
    y_BTD, statistics = moe(x_BTD, valid_BT)
    y_BTD.sum().backward()
    assert statistics.counts_E.tolist() == [13, 13, 0, 0, 0, 0, 0, 0]
    assert moe.gate_up.grad is not None
    assert moe.gate_up.grad[2:].count_nonzero() == 0


def test_the_bias_chooses_but_does_not_weigh() -> None:
    """With the same two experts chosen, it makes no difference by how much."""
    moe, (x_BTD, valid_BT) = filled(SMALL), example()
    outputs = []
    for bias in (5.0, 50.0):
        moe.bias.copy_(torch.tensor([0, 0, 0, bias, 0, 2 * bias, 0, 0]))
        y_BTD, statistics = moe(x_BTD, valid_BT)
        assert statistics.counts_E.nonzero().flatten().tolist() == [3, 5]
        outputs.append(y_BTD)
    torch.testing.assert_close(*outputs)
    assert not torch.allclose(outputs[0], by_loop(filled(SMALL), x_BTD.flatten(0, 1))[0].view_as(outputs[0]), atol=1e-2)


def test_the_bias_moves_by_sign_and_stays_centred() -> None:
    moe = filled(SMALL, n_routed_experts=4)
    moe.bias.zero_()
    moe.update_bias(torch.tensor([100, 0, 0, 0]), rate=0.1)
    torch.testing.assert_close(moe.bias, torch.tensor([-0.15, 0.05, 0.05, 0.05]))
    moe.update_bias(torch.tensor([25, 25, 25, 25]), rate=0.1)
    torch.testing.assert_close(moe.bias, torch.tensor([-0.15, 0.05, 0.05, 0.05]))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_choices_are_distinct_and_the_best_of_the_best_groups(data: st.DataObject) -> None:
    groups, size = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 6))
    best = data.draw(st.integers(1, groups))
    k = data.draw(st.integers(1, best * size))
    # A bias may make scores negative: what is not in the best groups must still lose.
    scores_NE = randn(20, groups * size, seed=data.draw(st.integers(0, 99))) - 1
    chosen_NK = choose(scores_NE, k, groups, best)
    spec = SMALL.model_copy(update={"n_group": groups, "topk_group": best, "num_experts_per_tok": k})
    for chosen, scores in zip(chosen_NK.tolist(), scores_NE.tolist(), strict=True):
        assert len({expert // size for expert in chosen}) <= best
        assert sorted(chosen) == sorted(best_experts(scores, spec))


def naive_losses(moe: MoE, x_BTD: torch.Tensor, valid_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row by row, expert by expert, as the papers write them."""
    experts, k = moe.spec.n_routed_experts, moe.spec.num_experts_per_tok
    balance = z = torch.zeros(())
    for x_TD, valid_T in zip(x_BTD, valid_BT, strict=True):
        x_TD = x_TD[valid_T]
        length = len(x_TD)
        if not length:
            continue
        _, choices, scores_TE = by_loop(moe, x_TD)
        for i in range(experts):
            f = experts / (k * length) * sum(i in chosen for chosen in choices)
            p = (scores_TE[:, i] / scores_TE.sum(-1)).mean()
            balance = balance + length * f * p
        z = z + (x_TD.float() @ moe.router.T).exp().sum(-1).log().square().sum()
    return balance, z


@pytest.mark.parametrize("name", SPECS)
def test_losses_are_their_formulas_over_valid_tokens(name: str) -> None:
    moe, (x_BTD, valid_BT) = filled(SPECS[name], **LOSSES), example()
    _, statistics = moe(x_BTD, valid_BT)
    expected = naive_losses(moe, x_BTD, valid_BT)
    for actual, reference in zip((statistics.balance, statistics.z), expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-4)
        for a, b in zip(gradients(actual, [x_BTD, moe.router]), gradients(reference, [x_BTD, moe.router]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_balance_is_one_a_token_when_all_is_even_and_more_when_the_router_prefers(scoring: str) -> None:
    moe, (x_BTD, valid_BT) = filled(SMALL, scoring_func=scoring, **LOSSES), example()
    moe.router.data.zero_()
    _, even = moe(x_BTD, valid_BT)
    torch.testing.assert_close(even.balance, torch.tensor(13.0))
    moe.router.data[:2] = x_BTD.mean((0, 1)).detach() * 20
    _, biased = moe(x_BTD.abs().detach(), valid_BT)
    assert biased.balance > 13


def test_losses_that_weigh_nothing_are_not_computed() -> None:
    x_BTD, valid_BT = example()
    for wanted in (frozenset[str](), frozenset({"router_aux_loss_coef"}), frozenset({"router_z_loss_coef"})):
        moe = filled(SMALL, **{name: coefficient for name, coefficient in LOSSES.items() if name in wanted})
        _, statistics = moe(x_BTD, valid_BT)
        for name, value in (("router_aux_loss_coef", statistics.balance), ("router_z_loss_coef", statistics.z)):
            assert (value.dtype, value.shape) == (torch.float32, ())
            assert (value.requires_grad, value.item() > 0) == (name in wanted,) * 2


def test_padding_changes_no_statistic() -> None:
    moe, (x_BTD, valid_BT) = filled(SMALL, **LOSSES), example()
    _, statistics = moe(x_BTD, valid_BT)
    other_BTD = torch.where(valid_BT[..., None], x_BTD, 10 * randn(*x_BTD.shape, seed=5))
    _, again = moe(other_BTD, valid_BT)
    for a, b in zip(statistics, again, strict=True):
        assert torch.equal(a, b)
    assert statistics.counts_E.dtype == torch.int64
    assert statistics.counts_E.sum() == 13 * SMALL.num_experts_per_tok


@pytest.mark.parametrize("make", [lambda: filled(SMALL, n_shared_experts=2), lambda: SwiGLU(HIDDEN, 12)])
def test_logical_matrices_are_gate_up_and_down_of_each_expert(make: Callable[[], nn.Module]) -> None:
    module = make()
    splits = logical_matrices(module)
    shapes = {}
    for name, p in module.named_parameters():
        if name == "router":
            assert name not in splits
            continue
        seen = torch.zeros_like(p)
        for m in splits[name](seen):
            assert m.view.untyped_storage().data_ptr() == seen.untyped_storage().data_ptr()
            m.view.add_(1)
            for i, matrix in enumerate(m.view.reshape(m.count, *m.shape)):
                shapes.setdefault(name, []).append((i, tuple(matrix.shape)))
        assert torch.equal(seen, torch.ones_like(seen)), name
    expected = {"gate_up": [(i, (12, HIDDEN)) for i in range(2)], "down": [(0, (HIDDEN, 12))]}
    if isinstance(module, MoE):
        expected = {
            "gate_up": [(i, (16, HIDDEN)) for i in range(16)],
            "down": [(i, (HIDDEN, 16)) for i in range(8)],
            "shared.gate_up": [(i, (32, HIDDEN)) for i in range(2)],
            "shared.down": [(0, (HIDDEN, 32))],
        }
    assert shapes == expected
    (gate_up,) = splits["gate_up"](module.gate_up.data)
    first = module.gate_up if isinstance(module, SwiGLU) else module.gate_up[0]
    assert torch.equal(gate_up.view.reshape(gate_up.count, *gate_up.shape)[1], first[:, 1])


class NoHostSync(TorchDispatchMode):
    """Raises where the host would wait for the device, or a shape would depend on data."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if any(
            word in name for word in ("_local_scalar_dense", "nonzero", "unique", "bincount", "masked_select", "is_nonzero")
        ):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SPECS)
def test_nothing_waits_for_the_device(name: str) -> None:
    moe, (x_BTD, valid_BT) = filled(SPECS[name], **LOSSES), example()
    with NoHostSync():
        y_BTD, statistics = moe(x_BTD, valid_BT)
        (y_BTD.sum() + statistics.balance + statistics.z).backward()
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            statistics.z.item()


def results(run: Callable[..., tuple[torch.Tensor, Statistics]], moe: MoE, dtype: torch.dtype) -> list[torch.Tensor]:
    """Outputs, statistics and gradients."""
    x_BTD, valid_BT = example(dtype)
    y_BTD, statistics = run(x_BTD, valid_BT)
    loss = (y_BTD.float() * randn(*y_BTD.shape, seed=9)).sum() + statistics.balance + statistics.z
    return [y_BTD, *statistics, *torch.autograd.grad(loss, [x_BTD, *moe.parameters()])]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.parametrize(("name", "dtype"), [("groups", torch.float32), ("scaled", torch.bfloat16)])
def test_compiled_equals_eager(name: str, dtype: torch.dtype) -> None:
    moe = filled(SPECS[name], **LOSSES)
    # Traced and partitioned as ever, but not turned into C++, which takes long.
    compiled = torch.compile(moe, fullgraph=True, dynamic=False, backend="aot_eager_decomp_partition")
    for a, b in zip(results(compiled, moe, dtype), results(moe, moe, dtype), strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        else:
            assert (a.double() - b.double()).norm() <= 0.02 * b.double().norm()


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputation_changes_no_bit(mode: Mode) -> None:
    moe = filled(SPECS["groups"], **LOSSES)
    expected = results(moe, moe, torch.bfloat16)
    apply_recompute([moe], mode)
    assert all(torch.equal(a, b) for a, b in zip(results(moe, moe, torch.bfloat16), expected, strict=True))


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_sharding_in_bf16_changes_no_bit_of_the_output() -> None:
    """Gathered parameters come in bf16 already; the rest of the layer must not notice."""
    moe, twin = filled(SPECS["scaled"], **LOSSES), filled(SPECS["scaled"], **LOSSES)
    group = create_group("gloo", dist.HashStore(), 0, 1, timedelta(seconds=10))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(twin, mesh=create_mesh("cpu", group, "workers"), mp_policy=policy)
    gradients_of = []
    for module in (moe, twin):
        x_BTD, valid_BT = example(torch.bfloat16)
        y_BTD, statistics = module(x_BTD, valid_BT)
        (y_BTD.float().square().sum() + statistics.balance + statistics.z).backward()
        gradients_of.append([y_BTD, *statistics, x_BTD.grad, *(p.grad for p in module.parameters())])
    for a, b in zip(*gradients_of, strict=True):
        b = b.to_local() if isinstance(b, DTensor) else b
        assert a.dtype == b.dtype
        assert (a.double() - b.double()).norm() <= 0.005 * a.double().norm()
    assert torch.equal(*(values[0] for values in gradients_of))
    dist.destroy_process_group(group)

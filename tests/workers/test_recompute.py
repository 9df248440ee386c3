"""Recomputation changes memory and nothing else; the choice of modes under a budget, as a table and by its properties."""

import copy
import itertools
from collections.abc import Sequence
from datetime import timedelta
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from workers.budget import RecomputeBudgetTooSmall, choose
from workers.compat_torch import create_group, create_mesh
from workers.model.footprint import Mode
from workers.model.grouped import grouped_mm
from workers.recompute import SAVED, apply_recompute, measure

MODES: tuple[Mode, ...] = get_args(Mode)
B, T, D, HEADS, E, WIDTH = 2, 32, 16, 2, 4, 32


class Block(nn.Module):
    """[B, T, D] -> [B, T, D] and how many positions chose each expert: all kinds of operators that a decoder's block has."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3 * D, D) * 0.2)
        self.router = nn.Parameter(torch.randn(E, D))
        self.up = nn.Parameter(torch.randn(E, WIDTH, D) * 0.2)
        self.down = nn.Parameter(torch.randn(E, D, WIDTH) * 0.2)
        self.norm = nn.Parameter(torch.ones(D))
        self.register_buffer("bias", torch.zeros(E))
        self.calls = 0

    def forward(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not torch.compiler.is_compiling():
            self.calls += 1
        fused = F.linear(F.rms_norm(x_BTD, (D,), self.norm), self.qkv)
        q, k, v = fused.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x_BTD = x_BTD + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        h_ND = F.rms_norm(x_BTD, (D,), self.norm).flatten(0, 1)
        scores_NE = F.linear(h_ND, self.router).sigmoid()
        weight_N, chosen_N = (scores_NE + self.bias).max(-1)
        order = chosen_N.argsort(stable=True)
        counts_E = torch.zeros(E, dtype=torch.long).scatter_add_(0, chosen_N, torch.ones_like(chosen_N))
        ends_E = counts_E.cumsum(0).to(torch.int32)
        y = grouped_mm(F.silu(grouped_mm(h_ND[order], self.up, ends_E)), self.down, ends_E)
        return x_BTD + (y[order.argsort()] * weight_N[:, None]).view_as(x_BTD), counts_E


def stack(count: int = 3) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(Block() for _ in range(count))


def run(blocks: nn.ModuleList) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The gradients of input and parameters, and the experts' counts by layer."""
    x_BTD = torch.randn(B, T, D, generator=torch.Generator().manual_seed(1)).requires_grad_()
    h_BTD, counts = x_BTD, []
    for block in blocks:
        h_BTD, counts_E = block(h_BTD)
        counts.append(counts_E)
    h_BTD.square().sum().backward()
    return [p.grad for p in (x_BTD, *blocks.parameters())], torch.stack(counts)


@pytest.mark.parametrize("modes", [*MODES, ("full", "none", "selective")])
def test_gradients_and_counts_are_the_same_to_the_bit(modes: Mode | Sequence[Mode]) -> None:
    expected, counts = run(stack())
    blocks = stack()
    apply_recompute(blocks, modes)
    actual, again = run(blocks)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert torch.equal(again, counts)
    each = [modes] * 3 if isinstance(modes, str) else modes
    # A second pass per recomputed block, whose counts nobody sees.
    assert [block.calls for block in blocks] == [1 if mode == "none" else 2 for mode in each]


def test_names_and_saved_state_stay() -> None:
    blocks = stack()
    before = list(blocks.state_dict())
    apply_recompute(blocks, "full")
    assert list(blocks.state_dict()) == before
    assert [name for name, _ in blocks.named_modules()] == ["", "0", "1", "2"]


def test_the_last_mode_counts_and_none_restores() -> None:
    blocks = stack(1)
    for mode, calls in (("full", 2), ("selective", 2), ("none", 1)):
        apply_recompute(blocks, mode)
        blocks[0].calls = 0
        run(blocks)
        assert blocks[0].calls == calls, mode


def test_a_copy_recomputes_itself_and_not_its_original() -> None:
    blocks = stack(1)
    apply_recompute(blocks, "full")
    run(twin := copy.deepcopy(blocks))
    assert (twin[0].calls, blocks[0].calls) == (2, 0)


def test_evaluation_runs_once() -> None:
    blocks = stack(1)
    apply_recompute(blocks, "selective")
    with torch.no_grad():
        y_BTD, _ = blocks[0](torch.randn(B, T, D))
    assert (blocks[0].calls, y_BTD.requires_grad) == (1, False)


def test_each_mode_keeps_less_than_the_one_before() -> None:
    x_BTD = torch.randn(B, T, D)
    kept = measure(stack(1)[0], x_BTD)
    assert kept["none"] > 1.5 * kept["selective"] > 3 * kept["full"]
    assert kept["full"] == x_BTD.nbytes
    # Attention gives its output and a sum a row; each of two sorts gives values and indices.
    results = {"qkv": 3 * D, "attention": D + HEADS, "router": E, "up": WIDTH, "down": D}
    fp32, int64 = 4 * B * T, 8 * B * T
    assert kept["selective"] == kept["full"] + fp32 * sum(results.values()) + 4 * int64


def test_measuring_takes_no_memory_under_fake_tensors() -> None:
    real = measure(stack(1)[0], torch.randn(B, T, D))
    with FakeTensorMode():
        assert measure(Block(), torch.empty(B, T, D)) == real


def test_measuring_ignores_the_mode_in_force_and_leaves_it() -> None:
    blocks = stack(1)
    expected = measure(blocks[0], torch.randn(B, T, D))
    apply_recompute(blocks, "full")
    assert measure(blocks[0], torch.randn(B, T, D)) == expected
    blocks[0].calls = 0
    run(blocks)
    assert blocks[0].calls == 2


def bytes_saved(block: nn.Module, x_BTD: torch.Tensor) -> int:
    """What autograd is given to keep, less parameters: for compiled blocks, whose inner tensors no dispatch mode sees."""
    own = {tensor.untyped_storage().data_ptr() for tensor in block.state_dict().values()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _ = block(x_BTD)
    return sum(size for pointer, size in kept.items() if pointer not in own)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_compiled_blocks_recompute_in_one_graph() -> None:
    expected, counts = run(stack(1))
    x_BTD = torch.randn(B, T, D, requires_grad=True)
    kept = []
    for mode in ("none", "selective", "full"):
        torch.compiler.reset()
        blocks = stack(1)
        apply_recompute(blocks, mode)
        # Traced and partitioned as ever, but not turned into C++, which takes long.
        blocks[0].compile(fullgraph=True, backend="aot_eager_decomp_partition")
        actual, again = run(blocks)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert torch.equal(again, counts)
        kept.append(bytes_saved(blocks[0], x_BTD))
    assert kept[0] > kept[1] > 2 * kept[2]


def test_sharded_blocks_recompute_with_gathered_parameters() -> None:
    expected, _ = run(stack())
    group = create_group("gloo", dist.HashStore(), 0, 1, timedelta(seconds=10))
    mesh = create_mesh("cpu", group, "workers")
    blocks = stack()
    apply_recompute(blocks, ("full", "selective", "none"))
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    actual, _ = run(blocks)
    whole = [actual[0], *(gradient.to_local() for gradient in actual[1:])]
    assert all(torch.equal(a, b) for a, b in zip(whole, expected, strict=True))
    dist.destroy_process_group(group)


def test_saved_operators_of_torch_exist() -> None:
    import torch.nn.attention.varlen

    for name in SAVED:
        namespace, _, operator = name.partition("::")
        if namespace in ("aten", "_c10d_functional", "manta", "torch_attn"):
            packet, _, overload = operator.partition(".")
            assert hasattr(getattr(getattr(torch.ops, namespace), packet), overload or "default"), name


def kept(none: int, selective: int, full: int) -> dict[Mode, int]:
    return {"none": none, "selective": selective, "full": full}


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (300, ["none", "none", "none"]),
        (299, ["selective", "none", "none"]),
        (240, ["selective", "none", "none"]),
        (239, ["selective", "selective", "none"]),
        (120, ["selective", "selective", "selective"]),
        (119, ["full", "selective", "selective"]),
        (30, ["full", "full", "full"]),
    ],
)
def test_a_budget_chooses_the_lightest_change_from_the_bottom(budget: int, expected: list[Mode]) -> None:
    assert choose([kept(100, 40, 10)] * 3, budget) == expected


def test_a_mode_that_saves_nothing_is_not_chosen() -> None:
    assert choose([kept(100, 120, 10), kept(100, 40, 10)], 140) == ["none", "selective"]
    assert choose([kept(10, 10, 10), kept(100, 40, 10)], 20) == ["none", "full"]


def test_a_budget_below_full_recomputation_says_what_is_missing() -> None:
    with pytest.raises(RecomputeBudgetTooSmall, match=r"take 30 B .* 1 B more than the budget of 29 B"):
        choose([kept(100, 40, 10)] * 3, 29)
    assert choose([], 0) == []


BLOCKS = st.lists(st.builds(kept, *[st.integers(0, 50)] * 3), max_size=5)


@given(BLOCKS, st.integers(0, 250))
def test_a_choice_fits_and_is_refused_only_where_none_does(blocks: list[dict[Mode, int]], budget: int) -> None:
    fits = any(
        sum(block[mode] for block, mode in zip(blocks, modes, strict=True)) <= budget
        for modes in itertools.product(MODES, repeat=len(blocks))
    )
    if not fits:
        with pytest.raises(RecomputeBudgetTooSmall):
            choose(blocks, budget)
        return
    modes = choose(blocks, budget)
    assert sum(block[mode] for block, mode in zip(blocks, modes, strict=True)) <= budget


@given(BLOCKS, st.integers(0, 250), st.integers(0, 50))
def test_a_larger_budget_never_recomputes_more(blocks: list[dict[Mode, int]], budget: int, more: int) -> None:
    try:
        tight = choose(blocks, budget)
    except RecomputeBudgetTooSmall:
        return
    for a, b in zip(choose(blocks, budget + more), tight, strict=True):
        assert MODES.index(a) <= MODES.index(b)

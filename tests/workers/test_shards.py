"""Built to shard: a contiguous part of a fused matrix is whole heads or channels, and the parts' outputs sum to the whole's."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.workers.test_model import inputs, randn, row, spec_of
from workers.model.attention import make_attention
from workers.model.feed_forward import SwiGLU
from workers.model.moe import MoE
from workers.model.rope import rope_angles

PARTS = 2
BY_ROW = ("qkv", "q", "q_up", "kv_up", "gate_up", "shared.gate_up")
"""Of a dense layer or of attention; experts' have the experts before."""
BY_COLUMN = ("out", "down", "shared.down")


def filled(module: nn.Module) -> nn.Module:
    for i, (name, tensor) in enumerate(module.state_dict().items()):
        tensor.copy_(randn(*tensor.shape, seed=i) * 0.3 + (1 if name.endswith("norm.weight") else 0))
    return module


def take(part: nn.Module, whole: nn.Module, index: int) -> nn.Module:
    """Fill ``part`` with the ``index``-th contiguous part of each matrix that is sharded, and with the whole of the others."""
    for name, tensor in whole.state_dict().items():
        # [E, ...]: a matrix for each expert.
        dim = int(isinstance(whole, MoE) and name in ("gate_up", "down"))
        if name in BY_ROW:
            tensor = tensor.chunk(PARTS, dim)[index]
        elif name in BY_COLUMN:
            tensor = tensor.chunk(PARTS, dim + 1)[index]
        part.state_dict()[name].copy_(tensor)
    return part


@pytest.mark.parametrize(
    "pattern", ["full", "sliding", "hierarchical", "segments", "latent", "latent queries", "partial rotary, normed heads"]
)
def test_a_part_of_an_attention_layers_rows_is_whole_heads(pattern: str) -> None:
    spec = spec_of(pattern, head_dim=8, num_attention_heads=4, num_key_value_heads=2)
    smaller = spec_of(pattern, head_dim=8, num_attention_heads=2, num_key_value_heads=1)
    x_BTD, batch = randn(1, 24, 32), inputs(spec, row(13, 6))
    seen = rope_angles(batch.positions_BT, spec, torch.float32), batch.sights[spec.pattern(0)]
    whole = filled(make_attention(spec, 0))
    parts = [take(make_attention(smaller, 0), whole, index)(x_BTD, *seen) for index in range(PARTS)]
    torch.testing.assert_close(sum(parts), whole(x_BTD, *seen), rtol=1e-4, atol=1e-5)


def test_a_part_of_a_feed_forward_layers_rows_is_gates_with_their_ups() -> None:
    x_BTD, whole = randn(1, 24, 32), filled(SwiGLU(32, 16))
    parts = [take(SwiGLU(32, 16 // PARTS), whole, index)(x_BTD) for index in range(PARTS)]
    torch.testing.assert_close(sum(parts), whole(x_BTD), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("more", [{}, {"n_shared_experts": 2, "scoring_func": "softmax"}], ids=["sigmoid", "softmax"])
def test_a_part_of_every_experts_rows_is_gates_with_their_ups(more: dict[str, Any]) -> None:
    x_BTD, valid_BT = randn(1, 24, 32), torch.ones(1, 24, dtype=torch.bool)
    whole = filled(MoE(spec_of(moe_intermediate_size=16, **more)))
    smaller = spec_of(moe_intermediate_size=16 // PARTS, **more)
    y_BTD, statistics = whole(x_BTD, valid_BT)
    parts = [take(MoE(smaller), whole, index)(x_BTD, valid_BT) for index in range(PARTS)]
    torch.testing.assert_close(sum(y for y, _ in parts), y_BTD, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(each.counts_E, statistics.counts_E) for _, each in parts)

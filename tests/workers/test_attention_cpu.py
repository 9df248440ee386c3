"""Causal attention whose backward pass is plain matrix products: SDPA's results and gradients."""

import pytest
import torch
from torch.nn import functional as F

from workers.model import attention_cpu
from workers.model.attention_cpu import causal_attention, is_faster

SHAPES = {"a group each": (2, 2, 24), "grouped heads": (4, 2, 24), "one group, a last piece of its own size": (3, 1, 29)}


def example(heads: int, groups: int, length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    # As the projections give them: heads beside each other, then brought to the front.
    return [
        torch.randn(2, length, n, 16, generator=generator).to(dtype).transpose(1, 2).requires_grad_()
        for n in (heads, groups, groups)
    ]


@pytest.mark.parametrize("packed", [False, True], ids=["one document a row", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_sdpa(shape: tuple[int, int, int], dtype: torch.dtype, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_cpu, "PIECE", 8)
    inputs = example(*shape, dtype)
    wide = [x.detach().float().requires_grad_() for x in inputs]
    ids_BT = torch.stack([torch.arange(shape[2]) // 7, torch.arange(shape[2]) // 20])
    mask_BTT = (ids_BT[:, :, None] == ids_BT[:, None]).tril() if packed else None
    y = causal_attention(*inputs, mask_BTT, 0.3)
    mask = None if mask_BTT is None else mask_BTT[:, None]
    expected = F.scaled_dot_product_attention(*wide, mask, is_causal=mask is None, scale=0.3, enable_gqa=True)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    actual = torch.autograd.grad(y, inputs, grad.to(dtype))
    reference = torch.autograd.grad(expected, wide, grad.to(dtype).float())
    for a, b in ((y, expected), *zip(actual, reference, strict=True)):
        assert a.dtype == dtype
        off = ((a.float() - b).norm() / b.norm()).item()
        assert off < (1e-6 if dtype == torch.float32 else 1e-2)


def test_it_is_for_compiled_bf16_of_moderate_length() -> None:
    q, k, v = example(4, 2, 24, torch.bfloat16)
    chosen = torch.compile(lambda *x: x[0] * is_faster(*x), backend="eager", dynamic=False)
    assert not is_faster(q, k, v)
    assert chosen(q, k, v).any()
    for others in (
        [x.float() for x in (q, k, v)],
        [q, k, v[..., :8]],
        [x.repeat(1, 1, 50, 1) for x in (q, k, v)],
    ):
        assert not chosen(*others).any()

"""The form of attention that a GPU's variable-length kernels read, with a naive kernel in their place: the same as a mask."""

import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from workers.model import sight
from workers.model.sight import Masked, Packed, Windows, attend, document_sight, flash_attention, packed, sights
from workers.model.spec import ModelSpec

CPU = torch.device("cpu")
T = 24


def naive_kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, _: Any, **options: Any
) -> torch.Tensor:
    """What flash-attn's ``flash_attn_varlen_func`` promises, one document at a time."""
    assert q.shape[-1] == k.shape[-1] == v.shape[-1]
    assert q.shape[-1] % 8 == 0
    assert options["causal"]
    left, right = options["window_size"]
    assert right == 0
    borders = starts.tolist()
    assert max(b - a for a, b in pairwise(borders)) <= options["max_seqlen_q"] == options["max_seqlen_k"]
    y = torch.full_like(q, float("nan"))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    for a, b in pairwise(borders):
        distance = torch.arange(b - a)[:, None] - torch.arange(b - a)
        hidden = (distance < 0) | ((distance > left) if left >= 0 else torch.zeros_like(distance, dtype=torch.bool))
        scores = torch.einsum("thd,shd->hts", q[a:b], k[a:b]) * options["softmax_scale"]
        y[a:b] = torch.einsum("hts,shd->thd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v[a:b])
    return y


def heads(rows: int, count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, T, count, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("d", "e"), [(8, 8), (12, 12), (24, 16), (6, 8), (8, 20)], ids=str)
@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_packed_sight_is_a_mask(monkeypatch: pytest.MonkeyPatch, d: int, e: int, window: int | None, groups: int) -> None:
    monkeypatch.setattr(sight, "flash_attention", lambda: naive_kernel)
    ids_BT = torch.tensor([[0] * 7 + [1] * 12 + [2] * 5, [0] * 20 + [-1] * 4])
    q, k, v = heads(2, 4, d, 0), heads(2, groups, d, 1), heads(2, groups, e, 2)
    y = attend(q, k, v, packed(ids_BT, CPU, window), 0.3)
    mask = (ids_BT[:, :, None] == ids_BT[:, None, :]).tril()
    expected = attend(q, k, v, Masked(mask if window is None else mask.triu(1 - window)), 0.3)
    assert y.shape == (2, T, 4, e)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=T, max_size=T).map(sorted), min_size=1, max_size=3))
def test_starts_are_those_of_the_documents_and_of_the_rows(ids: list[list[int]]) -> None:
    seen = packed(torch.tensor(ids), CPU, None)
    flat = [(row, number) for row, numbers in enumerate(ids) for number in numbers]
    expected = [at for at in range(len(flat)) if at == 0 or flat[at] != flat[at - 1]]
    starts = seen.starts.tolist()
    assert starts[: len(expected)] == expected
    assert set(starts[len(expected) :]) == {len(flat)}, "the total closes the last document"
    assert len(starts) & (len(starts) - 1) == 0, "few shapes"
    assert seen.starts.dtype == torch.int32
    assert seen.longest == T


@pytest.mark.parametrize(
    ("device", "dtype", "kind"),
    [("cpu", torch.bfloat16, Masked), ("cuda", torch.float32, Masked), ("cuda", torch.bfloat16, Packed)],
    ids=str,
)
def test_only_half_precision_on_a_gpu_is_packed(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, kind: type
) -> None:
    # Nothing is there to copy to.
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)
    assert isinstance(document_sight(torch.tensor([[0, 0, 1, 1]]), torch.device(device), dtype), kind)


@pytest.mark.parametrize("window", [None, 5])
def test_torchs_own_kernel_compiles_into_one_graph(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    """Where flash-attn is not installed. The kernel runs on a GPU only; what it is called with is looked at by its fake."""
    monkeypatch.setattr(sight, "flash_attention", flash_attention.__wrapped__)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    seen = packed(torch.tensor([[0] * 7 + [1] * 17]), CPU, window)
    assert seen.flash is None
    with FakeTensorMode() as fake:
        q, k, v = (fake.from_tensor(heads(1, count, 12, 0)) for count in (4, 2, 2))
        seen = seen._replace(starts=fake.from_tensor(seen.starts))
        y = torch.compile(attend, backend="eager", fullgraph=True)(q, k, v, seen, 0.3)
    assert y.shape == (1, T, 4, 12)


@pytest.mark.parametrize("length", [1, 13, 64, 150])
@pytest.mark.parametrize("pattern", ["full", "sliding", "hierarchical"])
def test_a_token_alone_gets_its_own_value_in_blocks_whatever_the_pattern(pattern: str, length: int) -> None:
    """As so many documents in one call, a variable-length kernel could not be launched."""
    spec = ModelSpec.model_validate({"attention_pattern": pattern})
    (seen,) = sights(spec, torch.zeros(3, length, dtype=torch.long), CPU, torch.float32, one_token=True).values()
    assert isinstance(seen, Windows)
    assert seen.mask_Bnbk.numel() <= 3 * (length + 64) * 64
    q, k, v = (torch.randn(3, length, count, 8, generator=torch.Generator().manual_seed(count)) for count in (4, 2, 2))
    torch.testing.assert_close(attend(q, k, v, seen, 0.3), v.repeat_interleave(2, dim=2))

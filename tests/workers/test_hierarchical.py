"""Hierarchical attention against a definition token by token, and what it may see, cost and hold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.workers.memory import peak_tensor_bytes
from workers.model import hierarchical
from workers.model.hierarchical import Hierarchy, hierarchical_attention, hierarchy

CPU = torch.device("cpu")
BLOCK, SLOTS = 4, 2


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def packed(lengths: list[int], row: int | None = None) -> torch.Tensor:
    """Document ids [1, T] of documents of these lengths, each from a block's border on; cut or padded to ``row``."""
    ids = [i for number, length in enumerate(lengths) for i in [number] * length + [-1] * (-length % BLOCK)]
    row = len(ids) if row is None else row
    return torch.tensor([(ids + [-1] * row)[:row]])


def plan_of(document_ids_BT: torch.Tensor) -> Hierarchy:
    return hierarchy(document_ids_BT, BLOCK, SLOTS, CPU)


def summaries(x_td: torch.Tensor, blocks: int) -> list[tuple[torch.Tensor, int]]:
    """The first ``blocks`` blocks as pooled vectors, and how many tokens each stands for: greedily, the longest node first."""
    seen, at = [], 0
    while at < blocks:
        span = 1 << (blocks - at).bit_length() - 1
        tokens = x_td[at * BLOCK : (at + span) * BLOCK]
        seen += [(part.mean(0), len(part)) for part in tokens.chunk(SLOTS)]
        at += span
    return seen


def reference(
    q_BTHd: torch.Tensor, k_BTGd: torch.Tensor, v_BTGe: torch.Tensor, ids_BT: torch.Tensor, scale: float
) -> torch.Tensor:
    """One query after the other; zeros on padding."""
    B, T, H, _ = q_BTHd.shape
    rows = []
    for row, at, head in ((i, t, h) for i in range(B) for t in range(T) for h in range(H)):
        if ids_BT[row, at] < 0:
            rows.append(v_BTGe.new_zeros(v_BTGe.shape[-1]))
            continue
        first = ids_BT[row].tolist().index(int(ids_BT[row, at]))
        k, v = (x[row, first : at + 1, head // (H // x.shape[2])] for x in (k_BTGd, v_BTGe))
        far = max((at - first) // BLOCK - 1, 0)
        keys = [*summaries(k, far), *((token, 1) for token in k[far * BLOCK :])]
        values = [*summaries(v, far), *((token, 1) for token in v[far * BLOCK :])]
        scores = torch.stack([x for x, _ in keys]) @ q_BTHd[row, at, head] * scale
        weights = (scores + torch.tensor([float(count) for _, count in keys]).log()).softmax(0)
        rows.append(weights @ torch.stack([x for x, _ in values]))
    return torch.stack(rows).view(B, T, H, -1)


LAYOUTS = {
    "one document": packed([64]),
    "a row that ends inside a block": packed([59]),
    "shorter than a block": packed([3]),
    "packed, with partial blocks": packed([9, 40, 1, 4, 5]),
    "two rows": torch.cat([packed([30, 27], row=62), packed([45], row=62)]),
}


@pytest.mark.parametrize(("kv_heads", "chunk"), [(1, 2**19), (2, 2**19), (4, 2**19), (2, 4000), (2, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_definition_forward_and_backward(
    layout: str, kv_heads: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hierarchical, "CHUNK_SCORES", chunk)
    ids_BT = LAYOUTS[layout]
    B, T = ids_BT.shape
    shapes = ((B, T, 4, 6), (B, T, kv_heads, 6), (B, T, kv_heads, 10))
    q, k, v = (randn(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes))

    y = hierarchical_attention(q, k, v, plan_of(ids_BT), scale=0.7)
    assert y.isfinite().all()
    y = y.where(ids_BT[..., None, None] >= 0, 0)
    expected = reference(q, k, v, ids_BT, scale=0.7)
    torch.testing.assert_close(y, expected)
    weight = randn(*y.shape, seed=9)
    actual, wanted = (torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (y, expected))
    torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_lower_precision_stays_near(dtype: torch.dtype, tolerance: float) -> None:
    """Relative to the largest value, as one bf16 rounding is 0.004."""
    plan = hierarchy(torch.zeros(1, 1024, dtype=torch.long), 32, 8, CPU)
    exact = [randn(1, 1024, heads, 32, seed=heads) for heads in (4, 2, 2)]
    weight = randn(1, 1024, 4, 32, seed=9)
    results = []
    for kind in (dtype, torch.float64):
        inputs = [x.to(dtype).to(kind).requires_grad_() for x in exact]
        y = hierarchical_attention(*inputs, plan)
        assert y.dtype == kind
        results.append([y, *torch.autograd.grad(y, inputs, weight.to(dtype).to(kind))])
    for low, high in zip(*results, strict=True):
        assert (low - high).abs().max() <= tolerance * high.abs().max()


@given(st.lists(st.integers(1, 70), min_size=1, max_size=4), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_without_a_query_every_token_of_the_past_counts_once(lengths: list[int], padding: int) -> None:
    ids_BT = F.pad(packed(lengths), (0, padding), value=-1)
    T = ids_BT.shape[1]
    v = randn(1, T, 1, 3)
    y = hierarchical_attention(torch.zeros(1, T, 1, 5).double(), randn(1, T, 1, 5, seed=1), v, plan_of(ids_BT))
    for number, length in enumerate(lengths):
        own = ids_BT[0] == number
        means = v[0, own].cumsum(0) / torch.arange(1, length + 1)[:, None, None]
        torch.testing.assert_close(y[0, own], means)


@given(st.lists(st.integers(1, 70), min_size=2, max_size=4))
@settings(max_examples=25, deadline=None)
def test_a_packed_row_equals_its_documents_alone(lengths: list[int]) -> None:
    ids_BT = packed(lengths)
    q, k, v = (randn(1, ids_BT.shape[1], 2, 5, seed=i) for i in range(3))
    y = hierarchical_attention(q, k, v, plan_of(ids_BT))
    for number, length in enumerate(lengths):
        own = ids_BT[0] == number
        alone = hierarchical_attention(q[:, own], k[:, own], v[:, own], plan_of(packed([length], row=length)))
        torch.testing.assert_close(y[:, own], alone)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=3), st.data())
@settings(max_examples=25, deadline=None)
def test_a_token_is_seen_by_later_ones_of_its_document_only(lengths: list[int], data: st.DataObject) -> None:
    ids_BT = packed(lengths)
    T = ids_BT.shape[1]
    at = data.draw(st.integers(0, T - 1).filter(lambda t: ids_BT[0, t] >= 0))
    plan, (q, k, v) = plan_of(ids_BT), (randn(1, T, 1, 5, seed=i) for i in range(3))
    before = hierarchical_attention(q, k, v, plan)
    for x in (q, k, v):
        x[:, at] += 10.0
    changed = (hierarchical_attention(q, k, v, plan) != before).any(-1)[0, :, 0]
    sees = (ids_BT[0] == ids_BT[0, at]) & (torch.arange(T) >= at)
    assert torch.equal(changed & (ids_BT[0] >= 0), sees)


def test_a_compiled_caller_gets_the_same() -> None:
    plan = plan_of(packed([40]))

    def layer(x: torch.Tensor) -> torch.Tensor:
        return hierarchical_attention(x * 2, x + 1, x.sin(), plan).cos()

    x = randn(1, 40, 2, 4).requires_grad_()
    results = []
    for fn in (layer, torch.compile(layer, backend="eager")):
        y = fn(x)
        results.append((y, *torch.autograd.grad(y.sum(), x)))
    torch.testing.assert_close(*results)


def test_plans_of_one_shape_hold_tensors_of_one_shape() -> None:
    """So that a CUDA graph or a compiled caller needs no other for other documents."""
    plans = [plan_of(packed(lengths, row=64)) for lengths in ([64], [1, 1, 1], [20, 40], [])]
    assert len({tuple(x.shape for x in plan[2:]) for plan in plans}) == 1


@pytest.mark.parametrize(
    ("ids", "block", "slots", "message"),
    [
        ([0, 0, 0, 1], 2, 1, "document 1 starts at token 3 of row 0"),
        ([0, -1, -1, 7], 4, 1, "document 7 starts at token 3 of row 0"),
        ([0, 0, 0, 0], 4, 3, "slots must divide the block: 3 slots, block of 4 tokens"),
        ([0, 0, 0, 0], 4, 0, "slots must divide the block: 0 slots"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(ids: list[int], block: int, slots: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hierarchy(torch.tensor([ids]), block, slots, CPU)


def counted_flops(tokens: int) -> int:
    """Forward and backward; counting needs no values."""
    plan = hierarchy(torch.zeros(1, tokens, dtype=torch.long), 128, 16, torch.device("meta"))
    q, k, v = (torch.empty(1, tokens, heads, 64, device="meta", requires_grad=True) for heads in (4, 2, 2))
    with FlopCounterMode(display=False) as counter:
        hierarchical_attention(q, k, v, plan).sum().backward()
    return counter.get_total_flops()


def test_flops_grow_little_faster_than_length() -> None:
    """Linear growth would be 4, quadratic 16."""
    at_8k = counted_flops(8 * 1024)
    assert at_8k >= 7 * 2 * 8 * 1024 * 4 * 256 * 64, "seven products of at least the exact part are counted"
    assert counted_flops(32 * 1024) <= 4.7 * at_8k


def test_peak_memory_counts_what_lives_at_once() -> None:
    old = torch.ones(1000, requires_grad=True)
    assert peak_tensor_bytes(lambda: old * 2) == 4000
    assert peak_tensor_bytes(lambda: old.detach().add_(1).view(10, 100)) == 0
    # The second is made before the first goes; the third after.
    assert peak_tensor_bytes(lambda: old.detach() * 2 * 2 * 2) == 8000
    # Kept for the backward pass although no name holds them, and one more for the result.
    assert peak_tensor_bytes(lambda: old.exp().exp().exp().sum()) == 12004
    with FakeTensorMode():
        assert peak_tensor_bytes(lambda: torch.empty(10**12).add(1)) == 8 * 10**12


@pytest.mark.parametrize("backward", [False, True])
def test_memory_at_100k_tokens(backward: bool) -> None:
    """All tensors count: q, k, v, the result, what is between and, with ``backward``, the gradients.

    SDPA's time is quadratic, so that it runs on fake tensors, which have sizes and no values; ours is computed.
    """
    T, H, G, d = 100_000, 2, 1, 64
    plan = hierarchy(torch.zeros(1, T, dtype=torch.long), 128, 16, CPU)

    def attend(kind: str, tokens: int = T, plan: Hierarchy = plan) -> None:
        q, k, v = (torch.ones(1, tokens, heads, d, requires_grad=backward) for heads in (H, G, G))
        if kind == "sdpa":
            heads_first = (x.transpose(1, 2) for x in (q, k, v))
            y = F.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True).transpose(1, 2)
        else:
            y = hierarchical_attention(q, k, v, plan)
        if backward:
            y.backward(torch.ones_like(y))

    with FakeTensorMode():
        sdpa = peak_tensor_bytes(lambda: attend("sdpa"))
        small = peak_tensor_bytes(lambda: attend("sdpa", 512))
    assert small == peak_tensor_bytes(lambda: attend("sdpa", 512))
    ours = peak_tensor_bytes(lambda: attend("hierarchical"))
    eager_scores = H * T * T * 4
    assert ours <= 1.5 * sdpa
    assert ours <= 0.01 * eager_scores

"""Hierarchical attention: near tokens exactly, the rest of the past as log-spaced summaries; O(T log T) time, O(T) memory.

A row is cut into blocks. A query sees its own block (causally) and the previous one of its document token by token, and the
m blocks before those as nodes of a Fenwick tree (Fenwick 1994): the binary digits of m name at most log2(m) + 1 nodes, each
longer than the next nearer one. A node holds a few mean-pooled keys and values, its slots; a slot stands for
2^level * block / slots tokens, and the logarithm of that number is added to its scores, so that it weighs as much as its
tokens would if they were equal. The tree counts blocks from its document's first, so that a packed document's output is
that of the document alone.

A node lies at the place of its last block: as many nodes as blocks, whatever the documents are.

Legend: B rows, T positions, H query heads, G key-value heads, R = H / G, d head size of queries and keys, e of values,
b tokens a block, n blocks a row, c blocks a chunk, L levels, s slots a node, K = 2b + L*s keys that a block sees,
N = B*n + 1 nodes (the last stands for "none"), M merges of two nodes, X = B*c*G.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK_SCORES = 2**19
"""Blocks are computed in chunks of about this many scores: few enough for a CPU's cache, and little beside a long row's keys.
(Measured with 8 heads of 64: chunks of 2**22 take 1.4 to 2.2 times as long.)"""
CHUNK_OF_QUERIES = 16
"""A GPU, which launches would bound, takes as many scores at once as a 16th of the queries has elements, where that is more."""


class Hierarchy(NamedTuple):
    """Who sees what, for one micro-batch: O(n log n) small tensors on the device; their shapes depend on B, T and b only."""

    block: int
    slots: int
    previous_Bn: torch.Tensor
    """Added to scores of the previous block: 0, or -inf where that is another document's."""
    nodes_BnL: torch.Tensor
    """The tree's node that a block sees at each level (int64 in [0, N))."""
    bias_BnL: torch.Tensor
    """Added to that node's scores: the logarithm of the tokens that a slot stands for, -inf for "none"."""
    merges_M2: torch.Tensor
    """Pairs of nodes, level by level from the first, of which the second becomes the summary of both."""


def hierarchy(document_ids_BT: torch.Tensor, block: int, slots: int, device: torch.device) -> Hierarchy:
    """The plan of a micro-batch for ``hierarchical_attention``, built in host memory.

    Args:
        document_ids_BT: in host memory; -1 on padding. A document starts at a multiple of ``block``.
        block: tokens a block.
        slots: summaries a node of the tree; divides ``block``.

    Raises ``ValueError`` for a document that starts elsewhere, and for slots that do not divide the block.
    """
    if block < 1 or slots < 1 or block % slots:
        raise ValueError(f"slots must divide the block: {slots} slots, block of {block} tokens")
    _check_starts(document_ids_BT, block)
    B, T = document_ids_BT.shape
    n = -(-T // block)
    none, levels = B * n, torch.arange(_levels(n))
    first_Bn = document_ids_BT[:, ::block]
    start_Bn = torch.ones(B, n, dtype=torch.bool)
    start_Bn[:, 1:] = first_Bn[:, 1:] != document_ids_BT[:, block - 1 : -1 : block]
    place_Bn = torch.arange(B * n).view(B, n)
    begin_Bn = torch.where(start_Bn, place_Bn, 0).flatten().cummax(0).values.view(B, n)
    index_Bn = place_Bn - begin_Bn

    # Of the m blocks before the previous one, level l holds those up to m with its digits below l cleared, if digit l is set.
    m_Bn1 = (index_Bn - 1).clamp(min=0)[..., None]
    seen_BnL = (m_Bn1 >> levels & 1).bool()
    nodes_BnL = torch.where(seen_BnL, begin_Bn[..., None] + (m_Bn1 >> levels << levels) - 1, none)
    bias_BnL = torch.where(seen_BnL, levels * math.log(2) + math.log(block / slots), -torch.inf)
    previous_Bn = torch.zeros(B, n).masked_fill(start_Bn, -torch.inf)

    merges = [torch.empty(0, 2, dtype=torch.long)]
    for level, size in enumerate(_merges(B, n), start=1):
        second = ((index_Bn + 1) % 2**level == 0).flatten().nonzero().flatten()
        pairs = torch.stack([second - 2 ** (level - 1), second], dim=1)
        merges.append(F.pad(pairs, (0, 0, 0, size - len(pairs)), value=none))
    parts = (previous_Bn, nodes_BnL, bias_BnL, torch.cat(merges))
    return Hierarchy(block, slots, *(x.to(device, non_blocking=True) for x in parts))


def _check_starts(document_ids_BT: torch.Tensor, block: int) -> None:
    changed_BT = (document_ids_BT[:, 1:] != document_ids_BT[:, :-1]) & (document_ids_BT[:, 1:] >= 0)
    changed_BT[:, block - 1 :: block] = False
    for row, at in changed_BT.nonzero().tolist():
        raise ValueError(
            f"document {document_ids_BT[row, at + 1]} starts at token {at + 1} of row {row}; hierarchical attention"
            f" needs documents to start at multiples of its block, {block} tokens"
        )


def _levels(n: int) -> int:
    """Levels of the tree over the n - 2 blocks that the last one may see as summaries."""
    return max(n - 2, 0).bit_length()


def _merges(B: int, n: int) -> list[int]:
    """How many pairs are merged, at most, at each level from the first."""
    return [B * (n >> level) for level in range(1, _levels(n))]


@torch.compiler.disable
def hierarchical_attention(
    q_BTHd: torch.Tensor, k_BTGd: torch.Tensor, v_BTGe: torch.Tensor, plan: Hierarchy, scale: float | None = None
) -> torch.Tensor:
    """Causal attention in O(T log T), [B, T, H, e], in the inputs' type.

    Scores are computed in the inputs' type, biased and normalised in fp32. What padding gets is finite and means nothing.
    Forward and backward run eagerly (a compiled caller has a graph break here) in chunks of blocks, and the backward pass
    computes its weights again: nothing is kept but the inputs. Deterministic; differentiable once.

    Args:
        q_BTHd, k_BTGd, v_BTGe: H is a multiple of G; head h reads key-value head h // (H / G).
        plan: of the same B and T.
        scale: of the scores, 1/sqrt(d) by default.
    """
    assert q_BTHd.shape[2] % k_BTGd.shape[2] == 0, (q_BTHd.shape, k_BTGd.shape)
    assert plan.previous_Bn.shape == (q_BTHd.shape[0], -(-q_BTHd.shape[1] // plan.block)), "a plan of another shape"
    return _Attention.apply(q_BTHd, k_BTGd, v_BTGe, plan, q_BTHd.shape[-1] ** -0.5 if scale is None else scale)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_BTHd: torch.Tensor, k_BTGd: torch.Tensor, v_BTGe: torch.Tensor, plan: Hierarchy, scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(q_BTHd, k_BTGd, v_BTGe, *plan[2:])
        ctx.plan, ctx.scale = plan[:2], scale
        G, k_tree, v_tree = k_BTGd.shape[2], _tree(k_BTGd, plan), _tree(v_BTGe, plan)
        y_BTHe = q_BTHd.new_empty(*q_BTHd.shape[:3], v_BTGe.shape[-1])
        for start, stop in _chunks(q_BTHd, plan):
            keys, values = _keys(k_BTGd, k_tree, plan, start, stop), _keys(v_BTGe, v_tree, plan, start, stop)
            weights = _weights(_queries(q_BTHd, G, plan, start, stop) * scale, keys, plan, start, stop)
            _put_queries(y_BTHe, torch.bmm(weights, values.flatten(0, 2)), G, plan, start, stop)
        return y_BTHe

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTHe: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_BTHd, k_BTGd, v_BTGe, *tensors = ctx.saved_tensors
        plan, scale, G = Hierarchy(*ctx.plan, *tensors), ctx.scale, k_BTGd.shape[2]
        k_tree, v_tree = _tree(k_BTGd, plan), _tree(v_BTGe, plan)
        grad_q, grad_k, grad_v = torch.empty_like(q_BTHd), torch.zeros_like(k_BTGd), torch.zeros_like(v_BTGe)
        # One node is read by many blocks: its gradient is summed in fp32.
        grad_k_tree, grad_v_tree = (torch.zeros_like(x, dtype=_accurate(x.dtype)) for x in (k_tree, v_tree))
        for start, stop in _chunks(q_BTHd, plan):
            keys, values = _keys(k_BTGd, k_tree, plan, start, stop), _keys(v_BTGe, v_tree, plan, start, stop)
            q = _queries(q_BTHd, G, plan, start, stop) * scale
            grad = _queries(grad_BTHe, G, plan, start, stop)
            weights = _weights(q, keys, plan, start, stop)
            _add_keys(grad_v, grad_v_tree, torch.bmm(weights.mT, grad).view_as(values), plan, start, stop)
            grad_scores = torch.bmm(grad, values.flatten(0, 2).mT).mul_(weights)
            grad_scores.addcmul_(weights, grad_scores.sum(-1, keepdim=True), value=-1)
            _add_keys(grad_k, grad_k_tree, torch.bmm(grad_scores.mT, q).view_as(keys), plan, start, stop)
            grad_q_chunk = torch.bmm(grad_scores, keys.flatten(0, 2)).mul_(scale)
            _put_queries(grad_q, grad_q_chunk, G, plan, start, stop)
        _add_tree(grad_k, grad_k_tree, plan)
        _add_tree(grad_v, grad_v_tree, plan)
        return grad_q, grad_k, grad_v, None, None


def _chunks(q_BTHd: torch.Tensor, plan: Hierarchy) -> Iterator[tuple[int, int]]:
    """First block and the one after the last of each chunk."""
    B, n, L = plan.nodes_BnL.shape
    block_scores = B * q_BTHd.shape[2] * plan.block * (2 * plan.block + L * plan.slots)
    budget = max(CHUNK_SCORES, q_BTHd.numel() // CHUNK_OF_QUERIES if q_BTHd.is_cuda else 0)
    size = max(1, budget // block_scores)
    return ((start, min(start + size, n)) for start in range(0, n, size))


def _weights(q_XRd: torch.Tensor, keys_BcGKd: torch.Tensor, plan: Hierarchy, start: int, stop: int) -> torch.Tensor:
    """Softmax of the scores of scaled queries, [X, R*b, K], in the queries' type."""
    B, c, _, K, _ = keys_BcGKd.shape
    b, s = plan.block, plan.slots
    bias_BcbK = plan.bias_BnL.new_empty(B, c, b, K)
    bias_BcbK[..., :b] = plan.previous_Bn[:, start:stop, None, None]
    bias_BcbK[..., b : 2 * b] = torch.full((b, b), -torch.inf, device=bias_BcbK.device).triu_(1)
    bias_BcbK[..., 2 * b :] = plan.bias_BnL[:, start:stop].repeat_interleave(s, dim=-1)[:, :, None]
    scores = torch.bmm(q_XRd, keys_BcGKd.flatten(0, 2).mT).to(_accurate(q_XRd.dtype))
    scores.view(B, c, -1, b, K).add_(bias_BcbK[:, :, None])
    return scores.softmax(-1).to(q_XRd.dtype)


def _accurate(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _blocks(x_BTGd: torch.Tensor, plan: Hierarchy, start: int, stop: int) -> torch.Tensor:
    """Blocks ``start`` to ``stop`` of the rows, [B, c, b, G, d]; zeros before a row's first token and after its last."""
    T, b = x_BTGd.shape[1], plan.block
    first, last = start * b, stop * b
    x = x_BTGd[:, max(first, 0) : last]
    if first < 0 or last > T:
        x = F.pad(x, (0, 0, 0, 0, max(-first, 0), max(last - T, 0)))
    return x.unflatten(1, (stop - start, b))


def _queries(q_BTHd: torch.Tensor, G: int, plan: Hierarchy, start: int, stop: int) -> torch.Tensor:
    """A chunk's queries by block and key-value head, [X, R*b, d]."""
    x = _blocks(q_BTHd, plan, start, stop).unflatten(3, (G, -1))  # [B, c, b, G, R, d]
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3, 4).flatten(0, 2)


def _put_queries(y_BTHe: torch.Tensor, x: torch.Tensor, G: int, plan: Hierarchy, start: int, stop: int) -> None:
    """The inverse: write a chunk's [X, R*b, e] to its place in the rows."""
    B, T, H, e = y_BTHe.shape
    b, c = plan.block, stop - start
    x = x.view(B, c, G, H // G, b, e).permute(0, 1, 4, 2, 3, 5).reshape(B, c * b, H, e)
    y_BTHe[:, start * b : stop * b] = x[:, : T - start * b]


def _keys(x_BTGd: torch.Tensor, tree_NGsd: torch.Tensor, plan: Hierarchy, start: int, stop: int) -> torch.Tensor:
    """What a chunk's blocks see, [B, c, G, K, d]: the previous block, their own, and the summaries by level."""
    x = _blocks(x_BTGd, plan, start - 1, stop).transpose(2, 3)
    far = tree_NGsd[plan.nodes_BnL[:, start:stop]]  # [B, c, L, G, s, d]
    return torch.cat([x[:, :-1], x[:, 1:], far.transpose(2, 3).flatten(3, 4)], dim=3)


def _add_keys(
    grad_BTGd: torch.Tensor, grad_tree_NGsd: torch.Tensor, grad_BcGKd: torch.Tensor, plan: Hierarchy, start: int, stop: int
) -> None:
    """The adjoint of ``_keys``."""
    T, b = grad_BTGd.shape[1], plan.block
    previous, own, far = grad_BcGKd.split([b, b, grad_BcGKd.shape[3] - 2 * b], dim=3)
    if start == 0:
        previous = previous[:, 1:]
    begin = max(start - 1, 0) * b
    grad_BTGd[:, begin : (stop - 1) * b] += previous.transpose(2, 3).flatten(1, 2)
    grad_BTGd[:, start * b : stop * b] += own.transpose(2, 3).flatten(1, 2)[:, : T - start * b]
    nodes = plan.nodes_BnL[:, start:stop].flatten()
    far = far.unflatten(3, (-1, plan.slots)).transpose(2, 3).flatten(0, 2).to(grad_tree_NGsd.dtype)
    # Each of the two is deterministic on its device only.
    if far.is_cuda:
        grad_tree_NGsd.index_put_((nodes,), far, accumulate=True)
    else:
        grad_tree_NGsd.index_add_(0, nodes, far)


def _tree(x_BTGd: torch.Tensor, plan: Hierarchy) -> torch.Tensor:
    """The pooled nodes, [N, G, s, d]: that of a document's blocks up to its i-th lies at the i-th, and spans as many blocks as
    the largest power of two that divides i."""
    B, n = plan.previous_Bn.shape
    T, G, d = x_BTGd.shape[1:]
    whole, s = T // plan.block, plan.slots
    x = _blocks(x_BTGd, plan, 0, whole).unflatten(2, (s, -1))  # [B, n, s, b / s, G, d]
    tree = x.new_zeros(B * n + 1, G, s, d, dtype=_accurate(x.dtype))
    tree[:-1].view(B, n, G, s, d)[:, :whole] = x.mean(3, dtype=tree.dtype).transpose(2, 3)
    for pairs in plan.merges_M2.split(_merges(B, n)):
        # The 2s slots of both, two by two.
        tree[pairs[:, 1]] = tree[pairs].transpose(1, 2).flatten(2, 3).unflatten(2, (s, 2)).mean(3)
    return tree.to(x.dtype)


def _add_tree(grad_BTGd: torch.Tensor, grad_tree_NGsd: torch.Tensor, plan: Hierarchy) -> None:
    """The adjoint of ``_tree``; overwrites ``grad_tree_NGsd``."""
    B, n = plan.previous_Bn.shape
    G, s, d = grad_tree_NGsd.shape[1:]
    for pairs in reversed(plan.merges_M2.split(_merges(B, n))):
        first, second = pairs.unbind(1)
        halves = (grad_tree_NGsd[second] / 2).repeat_interleave(2, dim=2)
        grad_tree_NGsd[second] = halves[:, :, s:]
        grad_tree_NGsd[first] += halves[:, :, :s]
    whole, pooled = grad_BTGd.shape[1] // plan.block, plan.block // s
    grad = grad_tree_NGsd[:-1].view(B, n, G, s, d)[:, :whole].transpose(2, 3) / pooled
    grad_BTGd[:, : whole * plan.block].unflatten(1, (whole, s, pooled)).add_(grad[:, :, :, None])

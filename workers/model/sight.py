"""What the queries of a micro-batch see, and attention over it: causal, and never across a document's border.

Legend: B rows, T positions, H query heads, G key-value heads, d head size of queries and keys, e of values, n blocks a row,
b tokens a block, m tokens before a block that its queries may see.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple, cast

import torch
from torch.nn import functional as F

from workers.model.attention_cpu import causal_attention, is_faster
from workers.model.hierarchical import Hierarchy, hierarchical_attention, hierarchy
from workers.model.spec import ModelSpec


class Masked(NamedTuple):
    """Every query against every key of its row."""

    mask_BTT: torch.Tensor | None
    """True where the query (second dimension) sees the key (third). None: each row is one document, and all of its past is
    seen."""


class Packed(NamedTuple):
    """For kernels that read all rows as one sequence of documents."""

    starts: torch.Tensor
    """Offsets (int32) of the documents' first tokens in the flattened rows, and the total, which is repeated up to a length
    that is a power of two: a compiled caller meets few shapes."""
    longest: int
    """A bound on a document's tokens."""
    window: int | None
    """Tokens that a query sees, its own among them; None: all of the past."""
    flash: Callable[..., torch.Tensor] | None
    """flash-attn's kernel; None: torch's own. Looked for here, since torch.compile ends a graph at an import that fails."""


class Windows(NamedTuple):
    """Blocks of queries, each against its own block and the ``back`` tokens before it: O(T (b + m))."""

    mask_Bnbk: torch.Tensor
    """True where the query sees the key; k = m + b."""
    back: int


ALONE_BLOCK = 64
"""Tokens that are masked from each other at once where every token sees itself alone."""

Sight = Masked | Packed | Windows | Hierarchy
Past = tuple[torch.Tensor, torch.Tensor]
"""Keys and values that stand in for those of earlier blocks: a memory, which passes no gradient on."""


def sights(
    spec: ModelSpec, document_ids_BT: torch.Tensor, device: torch.device, dtype: torch.dtype, *, one_token: bool = False
) -> dict[str, Sight]:
    """By the pattern of a layer (``ModelSpec.pattern``), what its queries see.

    ``document_ids_BT`` is in host memory, -1 on padding, so that finding the borders never waits for the device. ``dtype`` is
    the type that attention will compute in: flash kernels know no fp32. ``one_token``: every token sees itself alone.
    """
    patterns = {spec.pattern(layer) for layer in range(spec.num_hidden_layers + spec.num_nextn_predict_layers)}
    if one_token:
        alone_BT = torch.arange(document_ids_BT.numel()).view(document_ids_BT.shape)
        # In blocks: variable-length kernels launch at most 65,535 documents, and a mask of whole rows is large.
        return dict.fromkeys(patterns, _windows(alone_BT, min(ALONE_BLOCK, alone_BT.shape[1]), 0, None, device))
    return {pattern: _sight(spec, pattern, document_ids_BT, device, dtype) for pattern in patterns}


def _sight(spec: ModelSpec, pattern: str, ids_BT: torch.Tensor, device: torch.device, dtype: torch.dtype) -> Sight:
    if pattern == "hierarchical":
        return hierarchy(ids_BT, spec.hierarchical_block, spec.hierarchical_slots, device)
    if spec.segment_length is not None:
        return _windows(ids_BT, spec.segment_length, spec.memory_length, None, device)
    return document_sight(ids_BT, device, dtype, spec.sliding_window if pattern == "sliding" else None)


def document_sight(ids_BT: torch.Tensor, device: torch.device, dtype: torch.dtype, window: int | None = None) -> Sight:
    """All of a document's past, or the ``window`` nearest tokens, in the form that the device's best kernel reads."""
    T = ids_BT.shape[1]
    if device.type == "cuda" and dtype != torch.float32:
        return packed(ids_BT, device, window)
    if window is not None and 2 * window < T:
        return _windows(ids_BT, window, window, window, device)
    if window is None and bool(((ids_BT == ids_BT[:, :1]) | (ids_BT < 0)).all()):
        return Masked(None)
    ids_BT = ids_BT.to(device, non_blocking=True)
    mask_BTT = (ids_BT[:, :, None] == ids_BT[:, None, :]).tril()
    return Masked(mask_BTT if window is None else mask_BTT.triu(1 - window))


def packed(ids_BT: torch.Tensor, device: torch.device, window: int | None) -> Packed:
    """``ids_BT`` is in host memory."""
    first = torch.ones_like(ids_BT, dtype=torch.bool)
    first[:, 1:] = ids_BT[:, 1:] != ids_BT[:, :-1]
    starts = first.flatten().nonzero().flatten()
    starts = F.pad(starts, (0, 2 ** len(starts).bit_length() - len(starts)), value=first.numel())
    return Packed(starts.to(torch.int32).to(device, non_blocking=True), ids_BT.shape[1], window, flash_attention())


def _windows(ids_BT: torch.Tensor, block: int, back: int, window: int | None, device: torch.device) -> Windows:
    """A query sees its block's past and the last ``back`` tokens before the block, of both at most the ``window`` nearest."""
    ids_Bnb = F.pad(ids_BT.to(device, non_blocking=True), (0, -ids_BT.shape[1] % block), value=-2).unflatten(1, (-1, block))
    keys_Bnk = _with_past(ids_Bnb, ids_Bnb, back, fill=-3)
    distance_bk = torch.arange(block, device=device)[:, None] - torch.arange(-back, block, device=device)
    near_bk = (distance_bk >= 0) & (distance_bk < (window or block + back))
    return Windows((ids_Bnb[..., :, None] == keys_Bnk[..., None, :]) & near_bk, back)


def _with_past(x_Bnb: torch.Tensor, past_Bnb: torch.Tensor, back: int, fill: int = 0) -> torch.Tensor:
    """[B, n, b, ...] -> [B, n, m + b, ...]: before each block the last ``back`` entries of ``past``'s block before it."""
    before = past_Bnb[:, :-1, past_Bnb.shape[2] - back :]
    first = torch.full_like(past_Bnb[:, :1, :back], fill)
    return torch.cat([torch.cat([first, before], dim=1), x_Bnb], dim=2)


def attend(
    q_BTHd: torch.Tensor,
    k_BTGd: torch.Tensor,
    v_BTGe: torch.Tensor,
    sight: Sight,
    scale: float,
    past: Past | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention, [B, T, H, e]. The only place that knows attention kernels.

    On a CUDA device in half precision flash-attn where it imports, else torch's own variable-length kernel; torch's SDPA
    elsewhere. ``past`` is what blocks of ``Windows`` see of the blocks before them, if not ``k`` and ``v`` themselves.
    """
    if isinstance(sight, Hierarchy):
        return hierarchical_attention(q_BTHd, k_BTGd, v_BTGe, sight, scale)
    if isinstance(sight, Packed):
        return _packed(q_BTHd, k_BTGd, v_BTGe, sight, scale)
    if isinstance(sight, Windows):
        return _windowed(q_BTHd, k_BTGd, v_BTGe, sight, scale, past or (k_BTGd, v_BTGe))
    return _masked(q_BTHd, k_BTGd, v_BTGe, sight.mask_BTT, scale)


def _masked(
    q_BTHd: torch.Tensor, k_BSGd: torch.Tensor, v_BSGe: torch.Tensor, mask_BTS: torch.Tensor | None, scale: float
) -> torch.Tensor:
    e = v_BSGe.shape[-1]
    narrower = q_BTHd.shape[-1] - e
    if narrower > 0 and not q_BTHd.is_cuda:
        # A CPU's fused kernel wants values as wide as keys; without it every score would be kept.
        v_BSGe = F.pad(v_BSGe, (0, narrower))
    q, k, v = (x.transpose(1, 2) for x in (q_BTHd, k_BSGd, v_BSGe))
    if q.is_cuda and k.shape[1] != q.shape[1]:
        # With a mask and grouped heads only SDPA's slowest kernel is left on CUDA; expanded heads keep the efficient one.
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    if is_faster(q, k, v):
        return causal_attention(q, k, v, mask_BTS, scale).transpose(1, 2)[..., :e]
    mask = None if mask_BTS is None else mask_BTS[:, None]
    grouped = k.shape[1] != q.shape[1]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped)
    return y.transpose(1, 2)[..., :e]


def _windowed(
    q_BTHd: torch.Tensor, k_BTGd: torch.Tensor, v_BTGe: torch.Tensor, sight: Windows, scale: float, past: Past
) -> torch.Tensor:
    B, n, b, _ = sight.mask_Bnbk.shape
    T = q_BTHd.shape[1]

    def blocks(x_BTHd: torch.Tensor) -> torch.Tensor:
        return F.pad(x_BTHd, (0, 0, 0, 0, 0, n * b - T)).unflatten(1, (n, b))

    k, v = (
        _with_past(blocks(x), blocks(before), sight.back).flatten(0, 1)
        for x, before in zip((k_BTGd, v_BTGe), past, strict=True)
    )
    y = _masked(blocks(q_BTHd).flatten(0, 1), k, v, sight.mask_Bnbk.flatten(0, 1), scale)
    return y.unflatten(0, (B, n)).flatten(1, 2)[:, :T]


def _packed(q_BTHd: torch.Tensor, k_BTGd: torch.Tensor, v_BTGe: torch.Tensor, sight: Packed, scale: float) -> torch.Tensor:
    d, e = q_BTHd.shape[-1], v_BTGe.shape[-1]
    # The kernels want values as wide as keys, and that a multiple of 8. Zeros add nothing to a product.
    size = -(-max(d, e) // 8) * 8
    q, k, v = (
        (x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1]))).flatten(0, 1) for x in (q_BTHd, k_BTGd, v_BTGe)
    )
    window = (-1 if sight.window is None else sight.window - 1, 0)
    starts, longest = sight.starts, sight.longest
    if sight.flash is not None:
        options = {"softmax_scale": scale, "causal": True, "window_size": window}
        y = sight.flash(q, k, v, starts, starts, max_seqlen_q=longest, max_seqlen_k=longest, **options)
    else:
        from torch.nn.attention.varlen import varlen_attn

        grouped = k.shape[1] != q.shape[1]
        y = cast(
            torch.Tensor,
            varlen_attn(q, k, v, starts, starts, longest, longest, scale=scale, window_size=window, enable_gqa=grouped),
        )
    return y.unflatten(0, q_BTHd.shape[:2])[..., :e]


@cache
def flash_attention() -> Callable[..., torch.Tensor] | None:
    """flash-attn's variable-length kernel, if that is installed."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func

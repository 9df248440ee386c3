"""Grouped-query attention over packed documents: causal, and never across a document's border.

Legend: B rows, T positions, H query heads, G key-value heads, d head size, D hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from workers.model.rope import rotate
from workers.spec import ModelSpec


@dataclass(frozen=True)
class Borders:
    """Where documents lie in a micro-batch, in the one form that the device's attention kernel reads."""

    mask_BTT: torch.Tensor | None
    """True where the query (second dimension) sees the key (third)."""
    starts: torch.Tensor | None
    """Offsets (int32) of the documents' first tokens in the flattened rows, and the total: flash-attn's ``cu_seqlens``."""
    longest: int


@cache
def _flash_attention() -> Callable[..., torch.Tensor] | None:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func


def document_borders(document_ids_BT: torch.Tensor, device: torch.device, dtype: torch.dtype) -> Borders:
    """``document_ids_BT`` is in host memory, so that finding the borders never waits for the device. ``dtype`` is the type that
    attention will compute in: flash-attn knows no fp32."""
    if device.type == "cuda" and dtype == torch.bfloat16 and _flash_attention() is not None:
        first = torch.ones_like(document_ids_BT, dtype=torch.bool)
        first[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
        starts = torch.cat([first.flatten().nonzero().flatten(), torch.tensor([first.numel()])]).to(torch.int32)
        return Borders(None, starts.to(device, non_blocking=True), int(starts.diff().max()))
    ids_BT = document_ids_BT.to(device, non_blocking=True)
    same_BTT = ids_BT[:, :, None] == ids_BT[:, None, :]
    return Borders(same_BTT.tril(), None, document_ids_BT.shape[1])


def attend(q_BTHd: torch.Tensor, k_BTGd: torch.Tensor, v_BTGd: torch.Tensor, borders: Borders) -> torch.Tensor:
    """Scaled dot-product attention, [B, T, H, d]. The only place that knows attention kernels.

    flash-attn where it imports on a CUDA device, else torch's SDPA. (Measured on CPU at 256 positions with a mask, forward and
    backward: plain products are 1.5 times slower than SDPA in fp32, and as fast in bf16.)
    """
    B, T, H, d = q_BTHd.shape
    G = k_BTGd.shape[2]
    if borders.starts is not None:
        flash = _flash_attention()
        assert flash is not None
        flat = (x.flatten(0, 1) for x in (q_BTHd, k_BTGd, v_BTGd))
        y = flash(
            *flat, borders.starts, borders.starts, max_seqlen_q=borders.longest, max_seqlen_k=borders.longest, causal=True
        )
        return y.view(B, T, H, d)
    assert borders.mask_BTT is not None
    q, k, v = (x.transpose(1, 2) for x in (q_BTHd, k_BTGd, v_BTGd))
    if q.is_cuda and G != H:
        # With a mask and grouped heads only SDPA's slowest kernel is left on CUDA; expanded heads keep the efficient one.
        k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v))
    mask = borders.mask_BTT[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=k.shape[1] != H).transpose(1, 2)


class Attention(nn.Module):
    """[B, T, D] -> [B, T, D]. Queries, keys and values are one fused matrix, in that order along its rows."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = spec.num_attention_heads, spec.num_key_value_heads, spec.resolved_head_dim
        self.qkv = nn.Parameter(torch.empty((self.heads + 2 * self.kv_heads) * self.head_dim, spec.hidden_size))
        self.out = nn.Parameter(torch.empty(spec.hidden_size, self.heads * self.head_dim))

    def forward(self, x_BTD: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], borders: Borders) -> torch.Tensor:
        B, T, _ = x_BTD.shape
        fused = F.linear(x_BTD, self.qkv.to(x_BTD.dtype)).view(B, T, -1, self.head_dim)
        q, k, v = fused.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        y = attend(rotate(q, *angles), rotate(k, *angles), v, borders)
        return F.linear(y.reshape(B, T, -1), self.out.to(x_BTD.dtype))

"""Grouped-query attention over packed documents: causal, and never across a document's border.

Legend: B rows, T positions, H query heads, G key-value heads, d head size, D hidden size.
"""

import importlib.util
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from workers.model.rope import rotate
from workers.spec import ModelSpec

MATMUL_LENGTH = 512
"""On CPU, rows up to this long are faster by plain matrix products than by SDPA's blocked kernel (measured)."""


@dataclass(frozen=True)
class Borders:
    """Where documents lie in a micro-batch, in the one form that the device's attention kernel reads."""

    mask_BTT: torch.Tensor | None
    """True where the query (second dimension) sees the key (third)."""
    starts: torch.Tensor | None
    """Offsets (int32) of the documents' first tokens in the flattened rows, and the total: flash-attn's ``cu_seqlens``."""
    longest: int


def document_borders(document_ids_BT: torch.Tensor, device: torch.device) -> Borders:
    """``document_ids_BT`` is in host memory, so that finding the borders never waits for the device."""
    if device.type == "cuda" and importlib.util.find_spec("flash_attn"):
        first = torch.ones_like(document_ids_BT, dtype=torch.bool)
        first[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
        starts = torch.cat([first.flatten().nonzero().flatten(), torch.tensor([first.numel()])]).to(torch.int32)
        return Borders(None, starts.to(device, non_blocking=True), int(starts.diff().max()))
    ids_BT = document_ids_BT.to(device, non_blocking=True)
    same_BTT = ids_BT[:, :, None] == ids_BT[:, None, :]
    return Borders(same_BTT.tril(), None, document_ids_BT.shape[1])


def attend(q_BTHd: torch.Tensor, k_BTGd: torch.Tensor, v_BTGd: torch.Tensor, borders: Borders) -> torch.Tensor:
    """Scaled dot-product attention, [B, T, H, d]. The only place that knows attention kernels.

    flash-attn where it imports on a CUDA device; on CPU plain products for short rows; otherwise torch's SDPA.
    """
    B, T, H, d = q_BTHd.shape
    G = k_BTGd.shape[2]
    if borders.starts is not None:
        from flash_attn import flash_attn_varlen_func

        flat = (x.flatten(0, 1) for x in (q_BTHd, k_BTGd, v_BTGd))
        y = flash_attn_varlen_func(
            *flat, borders.starts, borders.starts, max_seqlen_q=borders.longest, max_seqlen_k=borders.longest, causal=True
        )
        return y.view(B, T, H, d)
    assert borders.mask_BTT is not None
    if q_BTHd.device.type == "cpu" and T <= MATMUL_LENGTH:
        return _attend_by_products(q_BTHd, k_BTGd, v_BTGd, borders.mask_BTT)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHd, k_BTGd, v_BTGd))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=borders.mask_BTT[:, None], enable_gqa=G != H).transpose(1, 2)


def _attend_by_products(
    q_BTHd: torch.Tensor, k_BTGd: torch.Tensor, v_BTGd: torch.Tensor, mask_BTT: torch.Tensor
) -> torch.Tensor:
    """Queries that share a key head are rows of one product, so keys and values are never repeated."""
    B, T, H, d = q_BTHd.shape
    G = k_BTGd.shape[2]
    q = (q_BTHd * d**-0.5).view(B, T, G, H // G, d).permute(0, 2, 3, 1, 4).reshape(B * G, H // G * T, d)
    k = k_BTGd.transpose(1, 2).reshape(B * G, T, d)
    v = v_BTGd.transpose(1, 2).reshape(B * G, T, d)
    scores = torch.bmm(q, k.transpose(1, 2)).view(B, H, T, T)
    weights = scores.masked_fill(~mask_BTT[:, None], -torch.inf).softmax(-1)
    y = torch.bmm(weights.view(B * G, H // G * T, T), v)
    return y.view(B, H, T, d).transpose(1, 2)


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

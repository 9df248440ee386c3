"""Causal attention in bf16 on a CPU: torch's fused kernel forward, plain matrix products backward.

At 512 tokens the backward pass of torch's kernel takes 31 ms where these products, with what lies between them fused by
torch.compile, take 20 (4 rows, 4 heads of 64; AVX-512 and AMX): a tile of scores is small, and oneDNN's batched products are
not.

Legend: B rows, T positions, H query heads, G key-value heads, d head size, t queries of a piece, s keys that they see; for
products N = B G, M = H / G t.
"""

from typing import Any

import torch
from torch.nn import functional as F

from workers.compat_torch import flash_attention_on_cpu

PIECE = 256
"""Queries whose scores are held at once. Half of the last piece's products are masked away, less of the others'."""
LONGEST = 1024
"""Tokens. With more pieces the kernel's skipping of what is masked gains on them."""


def is_faster(q_BHTd: torch.Tensor, k_BGTd: torch.Tensor, v_BGTd: torch.Tensor) -> bool:
    """Whether ``causal_attention`` is the thing to use. Uncompiled it is not."""
    fits = q_BHTd.shape[-1] == v_BGTd.shape[-1] and q_BHTd.shape[2] == k_BGTd.shape[2] <= LONGEST
    return fits and q_BHTd.device.type == "cpu" and q_BHTd.dtype == torch.bfloat16 and torch.compiler.is_compiling()


def causal_attention(
    q_BHTd: torch.Tensor, k_BGTd: torch.Tensor, v_BGTd: torch.Tensor, mask_BTT: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """[B, H, T, d]. A query sees its own position and those before it, of these only where ``mask_BTT`` is True."""
    return _CausalAttention.apply(q_BHTd, k_BGTd, v_BGTd, mask_BTT, scale)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BHTd: torch.Tensor,
        k_BGTd: torch.Tensor,
        v_BGTd: torch.Tensor,
        mask_BTT: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        y_BHTd, lse_BHT = flash_attention_on_cpu(q_BHTd, k_BGTd, v_BGTd, mask_BTT, scale)
        ctx.save_for_backward(q_BHTd, k_BGTd, v_BGTd, mask_BTT, y_BHTd, lse_BHT)
        ctx.scale = scale
        return y_BHTd

    @staticmethod
    def backward(ctx: Any, grad_BHTd: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """As in FlashAttention-2 (arXiv 2307.08691, algorithm 2), by pieces of queries only."""
        q, k, v, mask_BTT, y, lse = ctx.saved_tensors
        (B, H, T, d), G = q.shape, k.shape[1]
        lse_BHT1, own_BHT1 = lse[..., None], (grad_BHTd.float() * y.float()).sum(-1, keepdim=True)
        k, v = (x.reshape(B * G, T, d) for x in (k, v))
        grads_q, grad_k, grad_v = [], torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for start in range(0, T, PIECE):
            stop = min(start + PIECE, T)
            # A group's heads are rows of one product with its keys.
            q_NMd, grad_NMd = (x[:, :, start:stop].reshape(B * G, -1, d) for x in (q, grad_BHTd))
            k_Nsd, v_Nsd = k[:, :stop], v[:, :stop]
            scores, slopes = (
                (rows @ keys.transpose(1, 2)).view(B, H, -1, stop).float() for rows, keys in ((q_NMd, k_Nsd), (grad_NMd, v_Nsd))
            )
            seen_ts = torch.arange(stop, device=q.device) <= torch.arange(start, stop, device=q.device)[:, None]
            if mask_BTT is not None:
                seen_ts = seen_ts & mask_BTT[:, None, start:stop, :stop]
            p_BHts = torch.where(seen_ts, torch.exp(scores * ctx.scale - lse_BHT1[:, :, start:stop]), 0.0)
            turn_BHts = p_BHts * (slopes - own_BHT1[:, :, start:stop]) * ctx.scale
            p_NMs, turn_NMs = (x.to(q.dtype).view(B * G, -1, stop) for x in (p_BHts, turn_BHts))
            grads_q.append((turn_NMs @ k_Nsd).view(B, H, -1, d))
            rest = (0, 0, 0, T - stop)
            grad_k = grad_k + F.pad((turn_NMs.transpose(1, 2) @ q_NMd).float(), rest)
            grad_v = grad_v + F.pad((p_NMs.transpose(1, 2) @ grad_NMd).float(), rest)
        return torch.cat(grads_q, dim=2), *(x.to(q.dtype).view(B, G, T, d) for x in (grad_k, grad_v)), None, None

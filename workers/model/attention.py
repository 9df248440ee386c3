"""Attention modules: grouped queries (arXiv 2305.13245) and multi-head latent attention (arXiv 2405.04434).

Each maps [B, T, D] to [B, T, D]. Fused projections are ordered by key-value group or by head, so that a contiguous part of
their rows is whole heads.

Legend: B rows, T positions, D hidden size, H query heads, G key-value heads, R = H / G, d head size of queries and keys,
e of values.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from workers.model.norm import RMSNorm
from workers.model.rope import attention_scale, rotate
from workers.model.sight import Past, Sight, attend
from workers.model.spec import ModelSpec
from workers.muon import Matrices, Split

LATENT_NORM_EPS = 1e-6
"""Of the latents' norms, whatever ``rms_norm_eps`` is: so in DeepSeek's code and in ``transformers``."""

Angles = tuple[torch.Tensor, torch.Tensor]


class _Heads(NamedTuple):
    q_BTHd: torch.Tensor
    k_BTGd: torch.Tensor
    v_BTGe: torch.Tensor


class _Attention(nn.Module):
    out: nn.Parameter

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.scale = attention_scale(spec)
        self.remembers = spec.memory_length > 0

    def forward(self, x_BTD: torch.Tensor, angles: Angles, sight: Sight) -> torch.Tensor:
        heads = self.project(x_BTD, angles)
        # The memory of a segment is what this layer read in the one before it, as it was: no gradient goes there.
        past = self.project_past(x_BTD.detach(), angles) if self.remembers else None
        y_BTHe = attend(*heads, sight, self.scale, past)
        return F.linear(y_BTHe.flatten(2), self.out.to(x_BTD.dtype))

    def project(self, x_BTD: torch.Tensor, angles: Angles) -> _Heads:
        raise NotImplementedError

    def project_past(self, x_BTD: torch.Tensor, angles: Angles) -> Past:
        """Keys and values alone."""
        raise NotImplementedError


class GroupedQueryAttention(_Attention):
    """``qkv`` has the rows of each group's queries, its key and its value, one group after the other."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__(spec)
        self.groups, self.head_dim, heads = spec.num_key_value_heads, spec.resolved_head_dim, spec.heads(layer)
        self.repeats = heads // self.groups
        self.qkv = nn.Parameter(torch.empty((heads + 2 * self.groups) * self.head_dim, spec.hidden_size))
        self.out = nn.Parameter(torch.empty(spec.hidden_size, heads * self.head_dim))
        self.whole_norm = spec.qk_norm == "layer"
        self.q_norm = self.k_norm = None
        if spec.qk_norm is not None:
            sizes = (heads, self.groups) if self.whole_norm else (1, 1)
            self.q_norm, self.k_norm = (RMSNorm(size * self.head_dim, spec.rms_norm_eps) for size in sizes)

    def project(self, x_BTD: torch.Tensor, angles: Angles) -> _Heads:
        fused = F.linear(x_BTD, self.qkv.to(x_BTD.dtype)).unflatten(-1, (self.groups, self.repeats + 2, self.head_dim))
        q, k, v = fused.split([self.repeats, 1, 1], dim=3)
        q_BTHd, k_BTGd = self._normed(q.flatten(2, 3), self.q_norm), self._normed(k.flatten(2, 3), self.k_norm)
        return _Heads(rotate(q_BTHd, *angles), rotate(k_BTGd, *angles), v.flatten(2, 3))

    def project_past(self, x_BTD: torch.Tensor, angles: Angles) -> Past:
        rows = self._by_group(self.qkv)[:, self.repeats :].flatten(0, 2)
        k, v = F.linear(x_BTD, rows.to(x_BTD.dtype)).unflatten(-1, (self.groups, 2, self.head_dim)).unbind(3)
        return rotate(self._normed(k, self.k_norm), *angles), v

    def _normed(self, x_BTHd: torch.Tensor, norm: RMSNorm | None) -> torch.Tensor:
        if norm is None:
            return x_BTHd
        return norm(x_BTHd.flatten(2)).view_as(x_BTHd) if self.whole_norm else norm(x_BTHd)

    def _by_group(self, qkv: torch.Tensor) -> torch.Tensor:
        """[G, R + 2, d, D]"""
        return qkv.view(self.groups, self.repeats + 2, self.head_dim, -1)

    def logical_matrices(self) -> dict[str, Split]:
        """Queries, keys and values."""

        def split(qkv: torch.Tensor) -> list[Matrices]:
            parts = self._by_group(qkv).split([self.repeats, 1, 1], dim=1)
            return [Matrices(part) for part in parts]

        return {"qkv": split, "out": lambda out: [Matrices(out)]}


class LatentAttention(_Attention):
    """Keys and values are projected from a small latent; positions go through extra channels, of which all heads share one
    key. A head's rows in ``q`` and ``kv_up`` are its unrotated channels, then its rotated ones or its values."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__(spec)
        D, H, latent = spec.hidden_size, spec.heads(layer), spec.kv_lora_rank
        self.heads, self.latent = H, latent
        self.nope, self.rope, self.value = spec.qk_nope_head_dim, spec.qk_rope_head_dim, spec.v_head_dim
        queries = H * (self.nope + self.rope)
        if spec.q_lora_rank is None:
            self.q = nn.Parameter(torch.empty(queries, D))
            self.q_norm = None
        else:
            self.q_down = nn.Parameter(torch.empty(spec.q_lora_rank, D))
            self.q_norm = RMSNorm(spec.q_lora_rank, LATENT_NORM_EPS)
            self.q_up = nn.Parameter(torch.empty(queries, spec.q_lora_rank))
        self.kv_down = nn.Parameter(torch.empty(latent + self.rope, D))
        self.kv_norm = RMSNorm(latent, LATENT_NORM_EPS)
        self.kv_up = nn.Parameter(torch.empty(H * (self.nope + self.value), latent))
        self.out = nn.Parameter(torch.empty(D, H * self.value))

    def project(self, x_BTD: torch.Tensor, angles: Angles) -> _Heads:
        if self.q_norm is None:
            q = F.linear(x_BTD, self.q.to(x_BTD.dtype))
        else:
            q = F.linear(self.q_norm(F.linear(x_BTD, self.q_down.to(x_BTD.dtype))), self.q_up.to(x_BTD.dtype))
        nope, rope = q.unflatten(-1, (self.heads, -1)).split([self.nope, self.rope], dim=-1)
        return _Heads(torch.cat([nope, rotate(rope, *angles)], dim=-1), *self.project_past(x_BTD, angles))

    def project_past(self, x_BTD: torch.Tensor, angles: Angles) -> Past:
        latent, rope = F.linear(x_BTD, self.kv_down.to(x_BTD.dtype)).split([self.latent, self.rope], dim=-1)
        kv = F.linear(self.kv_norm(latent), self.kv_up.to(x_BTD.dtype)).unflatten(-1, (self.heads, -1))
        nope, v = kv.split([self.nope, self.value], dim=-1)
        shared = rotate(rope[:, :, None], *angles).expand(*nope.shape[:-1], -1)
        return torch.cat([nope, shared], dim=-1), v

    def logical_matrices(self) -> dict[str, Split]:
        """Queries; the latent and the shared key; keys and values; what each latent is expanded to."""

        def by_head(size: int) -> Split:
            def split(weight: torch.Tensor) -> list[Matrices]:
                return [Matrices(part) for part in weight.view(self.heads, -1, weight.shape[-1]).tensor_split([size], dim=1)]

            return split

        def whole(weight: torch.Tensor) -> list[Matrices]:
            return [Matrices(weight)]

        queries: dict[str, Split] = {"q": whole} if self.q_norm is None else {"q_down": whole, "q_up": whole}
        down: Split = lambda weight: [Matrices(part) for part in weight.tensor_split([self.latent])]  # noqa: E731
        return {**queries, "kv_down": down, "kv_up": by_head(self.nope), "out": whole}


def make_attention(spec: ModelSpec, layer: int) -> GroupedQueryAttention | LatentAttention:
    return LatentAttention(spec, layer) if spec.attention == "mla" else GroupedQueryAttention(spec, layer)

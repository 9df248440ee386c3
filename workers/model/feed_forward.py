"""The dense feed-forward layer, and what it shares with the experts.

Legend: D hidden size, W width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from workers.muon import Matrices, Split


class SwiGLU(nn.Module):
    """[..., D] -> [..., D]: ``down(silu(gate x) * up x)`` (arXiv 2002.05202).

    ``gate_up`` [W, 2, D]: each channel's gate beside its up, so that a shard of channels is a slice.
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(width, 2, hidden_size))
        self.down = nn.Parameter(torch.empty(hidden_size, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(gated(F.linear(x, halves(self.gate_up, x.dtype))), self.down.to(x.dtype))

    def logical_matrices(self) -> dict[str, Split]:
        return {"gate_up": gate_and_up, "down": matrices}


class _Halves(torch.autograd.Function):
    """Casts and permutes in one pass each way; autograd's own gradient would be a view that is copied again."""

    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        ctx.dtype = gate_up.dtype
        return gate_up.transpose(-3, -2).to(dtype, memory_format=torch.contiguous_format).flatten(-3, -2)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad = grad.unflatten(-2, (2, -1)).transpose(-3, -2)
        return grad.to(ctx.dtype, memory_format=torch.contiguous_format).contiguous(), None


class _Gated(torch.autograd.Function):
    """Keeps its input only, where autograd would keep ``silu(gate)`` too."""

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(h)
        gate, up = h.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (h,) = ctx.saved_tensors
        gate, up = h.chunk(2, dim=-1)
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return torch.cat([grad_gate, F.silu(gate).mul_(grad)], dim=-1)


def halves(gate_up: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[..., W, 2, D] -> [..., 2 W, D] in ``dtype``: all gates, then all ups, so that the activation reads whole runs."""
    return _Halves.apply(gate_up, dtype)


def gated(h: torch.Tensor) -> torch.Tensor:
    """[..., 2 W], gates first -> [..., W]: ``silu(gate) * up``."""
    return _Gated.apply(h)


def gate_and_up(w: torch.Tensor) -> Sequence[Matrices]:
    """Of [..., W, 2, D], a gate and an up matrix each."""
    batch = w.ndim - 2
    return [Matrices(w.movedim(-2, -3), batch)]


def matrices(w: torch.Tensor) -> Sequence[Matrices]:
    """The last two dimensions."""
    return [Matrices(w, w.ndim - 2)]

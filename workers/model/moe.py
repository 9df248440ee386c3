"""Mixture of SwiGLU experts with a sigmoid router, dispatched by a stable sort and grouped matrix products.

Legend: N tokens, D hidden size, E experts, K experts a token, F expert width. Nothing here waits for the device: token
counts stay tensors, and the sort needs no capacity, so no token is ever dropped.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from workers.spec import ModelSpec


@torch.library.custom_op("manta::grouped_mm", mutates_args=())
def grouped_mm(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Rows of ``x`` [N, I], sorted by group, times each group's matrix ``weight`` [E, O, I] transposed: [N, O].

    ``ends`` (int32, [E]) are the groups' end rows. An operator of its own because torch.compile rejects ``F.grouped_mm`` in
    fp32 and its backward rejects expanded gradients. Rows must be multiples of 16 bytes long.
    """
    return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)


@grouped_mm.register_fake
def _grouped_mm_fake(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("manta::grouped_mm_backward", mutates_args=())
def _grouped_mm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    grad = grad.contiguous()
    return F.grouped_mm(grad, weight, offs=ends), F.grouped_mm(grad.t(), x, offs=ends)


@_grouped_mm_backward.register_fake
def _grouped_mm_backward_fake(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _save_for_backward(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
    x, weight, ends = ctx.saved_tensors
    grad_x, grad_weight = _grouped_mm_backward(grad, x, weight, ends)
    return grad_x, grad_weight, None


grouped_mm.register_autograd(_backward, setup_context=_save_for_backward)


class _ToExperts(torch.autograd.Function):
    """Copy each token's row to its K places in expert order; the gradient gathers them back in a fixed order (no atomics)."""

    @staticmethod
    def forward(ctx: Any, x_ND: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor, k: int) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x_ND.index_select(0, order // k)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse).unflatten(0, (-1, ctx.k)).sum(1), None, None, None


class _FromExperts(torch.autograd.Function):
    """Back from expert order to token order: a permutation, and so is its gradient."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(order)
        return y.index_select(0, inverse)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        return grad.index_select(0, order), None, None


class SwiGLU(nn.Module):
    """``out(silu(gate x) * up x)`` (arXiv 2002.05202); gate and up are one matrix of 2F rows, gate first."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(2 * width, hidden_size))
        self.down = nn.Parameter(torch.empty(hidden_size, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = F.linear(x, self.gate_up.to(x.dtype)).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down.to(x.dtype))


class MoE(nn.Module):
    """[N, D] -> [N, D], and how many valid tokens chose each expert, [E].

    Scores are sigmoids in fp32. The balancing bias is added for the selection only; the outputs are weighed by the unbiased
    scores, normalised over the chosen (DeepSeek-V3, arXiv 2412.19437; bias: arXiv 2408.15664).
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        E, D, F_ = spec.n_routed_experts, spec.hidden_size, spec.moe_intermediate_size
        self.k, self.scale = spec.num_experts_per_tok, spec.routed_scaling_factor
        self.router = nn.Parameter(torch.empty(E, D))
        self.gate_up = nn.Parameter(torch.empty(E, 2 * F_, D))
        self.down = nn.Parameter(torch.empty(E, D, F_))
        self.shared = SwiGLU(D, spec.n_shared_experts * F_) if spec.n_shared_experts else None
        self.bias: torch.Tensor
        self.register_buffer("bias", torch.empty(E))

    def forward(self, x_ND: torch.Tensor, valid_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen_NK, weight_NK = self.route(x_ND)
        flat = chosen_NK.flatten()
        order = flat.argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
        counts_E = flat.new_zeros(self.bias.numel()).scatter_add_(0, flat, torch.ones_like(flat))
        ends_E = counts_E.cumsum(0).to(torch.int32)

        x = _ToExperts.apply(x_ND, order, inverse, self.k)
        gate, up = grouped_mm(x, self.gate_up.to(x.dtype), ends_E).chunk(2, dim=-1)
        y = _FromExperts.apply(grouped_mm(F.silu(gate) * up, self.down.to(x.dtype), ends_E), order, inverse)
        y_ND = (y.unflatten(0, (-1, self.k)) * weight_NK[..., None]).sum(1).to(x.dtype)
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND)

        valid = valid_N.to(flat.dtype)[:, None].expand_as(chosen_NK).reshape(-1)
        return y_ND, torch.zeros_like(counts_E).scatter_add_(0, flat, valid)

    def route(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The chosen experts' indices and weights, both [N, K]."""
        # The gate is rounded to the compute type first: sharded and unsharded ranks then see the same one.
        scores_NE = F.linear(x_ND.float(), self.router.to(x_ND.dtype).float()).sigmoid()
        chosen_NK = (scores_NE.detach() + self.bias).topk(self.k, dim=-1).indices
        weight_NK = scores_NE.gather(1, chosen_NK)
        return chosen_NK, self.scale * weight_NK / weight_NK.sum(-1, keepdim=True)

    @torch.no_grad()
    def update_bias(self, counts_E: torch.Tensor, rate: float) -> None:
        """Once an optimizer step, from the counts of the whole global batch: ``rate`` up where too few tokens came, down where
        too many, and re-centred so that the bias cannot drift."""
        counts = counts_E.to(self.bias)
        self.bias += rate * torch.sign(counts.mean() - counts)
        self.bias -= self.bias.mean()

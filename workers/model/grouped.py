"""Tokens to experts and back: grouped matrix products, and the permutations around them.

Legend: N tokens, K experts a token, D hidden size, E experts, I and O a matrix's inputs and outputs. A place is a row in
expert order: all of expert 0's tokens, then expert 1's, each token K times in all.
"""

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from workers.model.grouped_cpu import grouped_outer, grouped_rows


class Places(NamedTuple):
    """Where the rows of a choice [N, K] go; nothing here waits for the device."""

    order: torch.Tensor
    """[N K]: of each place, the choice ``token * K + rank`` that it holds."""
    inverse: torch.Tensor
    """[N K]: of each choice, its place."""
    ends_E: torch.Tensor
    """int32: where each expert's places end."""


def places(chosen_NK: torch.Tensor, experts: int) -> Places:
    """By a stable sort: no capacity, so no token is ever dropped."""
    sorted_, order = chosen_NK.flatten().sort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    ends_E = torch.searchsorted(sorted_, torch.arange(experts, device=order.device), right=True, out_int32=True)
    return Places(order, inverse, ends_E)


def _has_few_shapes(x: torch.Tensor) -> bool:
    """Whether a product is to be had in few shapes only."""
    return x.device.type == "cpu" and x.dtype.itemsize == 2


@torch.library.custom_op("manta::grouped_mm", mutates_args=())
def grouped_mm(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Rows of ``x`` [N, I], sorted by group, times each group's matrix ``weight`` [E, O, I] transposed: [N, O].

    ``ends`` (int32, [E]) are the groups' end rows. An operator of its own because torch.compile rejects ``F.grouped_mm`` in
    fp32 and its backward rejects expanded gradients. Rows must be multiples of 16 bytes long.
    """
    if _has_few_shapes(x):
        return grouped_rows(x, weight.transpose(1, 2), ends)
    return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)


@grouped_mm.register_fake
def _grouped_mm_fake(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("manta::grouped_mm_backward", mutates_args=())
def _grouped_mm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    grad = grad.contiguous()
    if _has_few_shapes(x):
        return grouped_rows(grad, weight, ends), grouped_outer(grad, x, ends)
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
    """Copy each token's row to its K places; the gradient gathers them back in a fixed order (no atomics)."""

    @staticmethod
    def forward(ctx: Any, x_ND: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor, k: int) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x_ND.index_select(0, order // k)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return _sum_rows(grad, inverse.view(-1, ctx.k)).to(grad.dtype), None, None, None


class _FromExperts(torch.autograd.Function):
    """The sum of each token's K places by their weights, in fp32, then rounded to the places' type."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, weight_NK: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(y, weight_NK, order, inverse)
        return _sum_rows(y, inverse.view_as(weight_NK), weight_NK).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, grad_ND: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        y, weight_NK, order, inverse = ctx.saved_tensors
        grad = grad_ND.float().index_select(0, order // weight_NK.shape[1])
        grad_weight = (grad * y).sum(-1).index_select(0, inverse).view_as(weight_NK)
        grad_y = grad.mul_(weight_NK.flatten().index_select(0, order)[:, None])
        return grad_y.to(y.dtype), grad_weight, None, None


def _sum_rows(rows: torch.Tensor, index_NK: torch.Tensor, weight_NK: torch.Tensor | None = None) -> torch.Tensor:
    """The sum over K of the indexed rows, by weight (fp32) if there are any: [N, D]."""
    if rows.device.type == "cpu" and not torch.compiler.is_compiling():
        # One pass over the rows, which eager operators take three for and a compiler fuses by itself.
        return F.embedding_bag(index_NK, rows if weight_NK is None else rows.float(), per_sample_weights=weight_NK, mode="sum")
    rows_NKD = rows.index_select(0, index_NK.flatten()).view(*index_NK.shape, -1)
    return (rows_NKD if weight_NK is None else rows_NKD * weight_NK[..., None]).sum(1)


def to_experts(x_ND: torch.Tensor, at: Places) -> torch.Tensor:
    return _ToExperts.apply(x_ND, at.order, at.inverse, at.order.numel() // x_ND.shape[0])


def from_experts(y: torch.Tensor, weight_NK: torch.Tensor, at: Places) -> torch.Tensor:
    """[N K, D] and weights to [N, D]."""
    return _FromExperts.apply(y, weight_NK, at.order, at.inverse)

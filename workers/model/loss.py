"""The head and its loss together, a chunk of tokens at a time: logits are never held for all of them.

The gradient is known as soon as a chunk's logits are, so it is computed then and there, in their place (as in Liger Kernel,
arXiv 2410.10989); the backward pass only scales it.

Legend: N tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORED = -100
"""The target of a position that is not trained on."""

CHUNK = 512
"""Tokens of a chunk. Measured on a CPU with vocabularies of 8192 and 32768: fewer slow the products down, with more the logits
leave the cache and nothing is gained."""
CHUNK_ON_GPU = 4096
"""There the head's gradient, read and written in fp32 for every chunk, would bound the loss: with 512 tokens that takes three
quarters of the time of the chunk's products, with 4096 a tenth (computed, of an H100's 3.35 TB/s and 989 TFLOP/s)."""

SLICE = 2048
"""Rows of the head whose gradient is added at once."""

Tensors = tuple[torch.Tensor, torch.Tensor]


def linear_cross_entropy(
    x_ND: torch.Tensor,
    head_VD: torch.Tensor,
    targets_N: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    chunk: int | None = None,
    compiled: bool = False,
) -> Tensors:
    """What training lowers, and the plain cross-entropy in nats without gradient: sums over targets that are not ``IGNORED``.

    With p the softmax of x head^T in fp32 and p_t the target's share, each target adds::

        (1 - p_t) ** focal_gamma * ((1 - label_smoothing) * -log p_t + label_smoothing * mean_v(-log p_v))

    which is the smoothed cross-entropy of arXiv 1512.00567, section 7, weighed by the focal factor of arXiv 1708.02002; that
    factor looks at the true target, not at the smoothed one. The matrix products are in the type of ``x_ND``, to which the
    head is cast; the head's gradient is added up over chunks in fp32. At most ``chunk`` x V logits are held at a time, by
    default what suits the device.

    ``compiled`` fuses with torch.compile what lies between the products (on a CPU 5 times as fast in bf16). The same sums
    again need the forward pass again: a second ``backward`` raises RuntimeError, and there is no second derivative.
    """
    recipe = _Recipe(label_smoothing, focal_gamma, chunk or chunk_on(x_ND.device), compiled)
    if torch.is_grad_enabled() and (x_ND.requires_grad or head_VD.requires_grad):
        return _LinearCrossEntropy.apply(x_ND, head_VD, targets_N, recipe)
    objective, ce, _, _ = _over_chunks(x_ND, head_VD, targets_N, recipe, (False, False))
    return objective, ce


def chunk_on(device: torch.device) -> int:
    """Tokens."""
    return CHUNK_ON_GPU if device.type == "cuda" else CHUNK


class _Recipe(NamedTuple):
    label_smoothing: float
    focal_gamma: float
    chunk: int
    compiled: bool


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: torch.Tensor, head_VD: torch.Tensor, targets_N: torch.Tensor, recipe: _Recipe) -> Tensors:
        needed = ctx.needs_input_grad[:2]
        objective, ce, dx_ND, dhead_VD = _over_chunks(x_ND, head_VD, targets_N, recipe, needed)
        ctx.save_for_backward(dx_ND, dhead_VD)
        ctx.dtypes = x_ND.dtype, head_VD.dtype
        ctx.mark_non_differentiable(ce)
        return objective, ce

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place, to hold no second [V, D]; torch then refuses another backward pass, since what it needs has changed.
        saved = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if gradient is None else gradient.mul_(scale).to(dtype) for gradient, dtype in saved), None, None


def _over_chunks(
    x_ND: torch.Tensor, head_VD: torch.Tensor, targets_N: torch.Tensor, recipe: _Recipe, needed: tuple[bool, bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Objective, cross-entropy, and the objective's gradients by x and head where ``needed``."""
    head = head_VD.to(x_ND.dtype)
    wide = torch.promote_types(x_ND.dtype, torch.float32)
    # fp16 cannot hold unscaled gradients: nearly every probability is below its smallest normal number.
    narrow = wide if x_ND.dtype == torch.float16 else x_ND.dtype
    objective, ce = torch.zeros(2, dtype=wide, device=x_ND.device)
    dx_ND = torch.empty_like(x_ND, dtype=narrow) if needed[0] else None
    dhead_VD = torch.zeros(head_VD.shape, dtype=wide, device=head_VD.device) if needed[1] else None
    chunk_loss = _compiled() if recipe.compiled else _chunk_loss
    for start in range(0, x_ND.shape[0], recipe.chunk):
        part = slice(start, start + recipe.chunk)
        z_CV = F.linear(x_ND[part], head).to(narrow)
        sums = chunk_loss(z_CV, targets_N[part], recipe.label_smoothing, recipe.focal_gamma, any(needed), recipe.compiled)
        objective, ce = objective + sums[0], ce + sums[1]
        if dx_ND is not None:
            torch.mm(z_CV, head.to(narrow), out=dx_ND[part])
        if dhead_VD is not None:
            _add_product(dhead_VD, z_CV, x_ND[part].to(narrow))
        # Else it would live until the next chunk's logits are there.
        del z_CV
    return objective, ce, dx_ND, dhead_VD


def _add_product(total_VD: torch.Tensor, z_CV: torch.Tensor, x_CD: torch.Tensor) -> None:
    """Add z^T x to a total of a type at least as wide."""
    if total_VD.dtype == z_CV.dtype:
        total_VD.addmm_(z_CV.t(), x_CD)
        return
    # A slice of the product is added while it is in the cache.
    for start in range(0, total_VD.shape[0], SLICE):
        part = slice(start, start + SLICE)
        total_VD[part] += z_CV[:, part].t() @ x_CD


def _chunk_loss(
    z_CV: torch.Tensor, targets_C: torch.Tensor, label_smoothing: float, focal_gamma: float, gradient: bool, fused: bool
) -> Tensors:
    """The two sums over a chunk. With ``gradient`` the logits are overwritten by the objective's gradient.

    That is ``p * scale - floor``, less ``drop`` at the target, each of the three one number a row.
    """
    V = z_CV.shape[1]
    valid_C1 = targets_C[:, None] != IGNORED
    targets_C1 = torch.where(valid_C1, targets_C[:, None], 0)
    z = z_CV.to(torch.promote_types(z_CV.dtype, torch.float32))
    lse_C1 = z.logsumexp(-1, keepdim=True)
    ce_C1 = lse_C1 - z.gather(1, targets_C1)
    loss_C1 = ce_C1
    if label_smoothing:
        loss_C1 = (1 - label_smoothing) * ce_C1 + label_smoothing * (lse_C1 - z.mean(-1, keepdim=True))
    weight_C1 = valid_C1.to(z.dtype)
    turn_C1 = torch.zeros_like(weight_C1)
    if focal_gamma:
        # Below the rounding of p_t the factor's slope would be that of noise, without bound where gamma < 1.
        miss_C1 = (-torch.expm1(-ce_C1)).clamp(min=torch.finfo(z.dtype).eps)
        turn_C1 = weight_C1 * loss_C1 * focal_gamma * miss_C1 ** (focal_gamma - 1) * torch.exp(-ce_C1)
        weight_C1 = weight_C1 * miss_C1**focal_gamma
    if gradient:
        scale_C1 = weight_C1 + turn_C1
        floor_C1 = weight_C1 * (label_smoothing / V)
        drop_C1 = weight_C1 * (1 - label_smoothing) + turn_C1
        if fused:
            hit_CV = torch.arange(V, device=z.device) == targets_C1
            z_CV.copy_(torch.exp(z - lse_C1) * scale_C1 - torch.where(hit_CV, floor_C1 + drop_C1, floor_C1))
        else:
            z_CV.copy_(z.softmax(-1).mul_(scale_C1).sub_(floor_C1))
            z_CV.scatter_(1, targets_C1, (torch.exp(-ce_C1) * scale_C1 - floor_C1 - drop_C1).to(z_CV.dtype))
    return (weight_C1 * loss_C1).sum(), (valid_C1 * ce_C1).sum()


@cache
def _compiled() -> Callable[..., Tensors]:
    return torch.compile(_chunk_loss, dynamic=False)

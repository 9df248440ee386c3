"""Rotary position embedding (arXiv 2104.09864) in the half-split layout of Hugging Face's models, and YaRN (arXiv 2309.00071).

Legend: B rows, T positions, H heads, d head size, r rotated channels.
"""

import math

import torch

from workers.model.spec import ModelSpec, YarnSpec


def rope_angles(positions_BT: torch.Tensor, spec: ModelSpec, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, each [B, T, 1, r/2], of the positions' rotations; computed in fp32 and given in ``dtype``."""
    frequencies, length = rope_frequencies(spec)
    angles = positions_BT[..., None, None].float() * frequencies.to(positions_BT.device, non_blocking=True)
    return (angles.cos() * length).to(dtype), (angles.sin() * length).to(dtype)


def rope_frequencies(spec: ModelSpec) -> tuple[torch.Tensor, float]:
    """Radians a position for each of the r/2 pairs, fp32 in host memory, and what cosines and sines are multiplied by."""
    exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.float32) / spec.rotary_dim
    frequencies = 1.0 / spec.rope_theta**exponents
    if (yarn := spec.rope_scaling) is None:
        return frequencies, 1.0
    kept = _kept(yarn, spec.rotary_dim, spec.rope_theta)
    stretched = frequencies / yarn.factor * (1 - kept) + frequencies * kept
    if yarn.mscale and yarn.mscale_all_dim:
        return stretched, yarn_scale(yarn.factor, yarn.mscale) / yarn_scale(yarn.factor, yarn.mscale_all_dim)
    return stretched, yarn_scale(yarn.factor)


def _kept(yarn: YarnSpec, size: int, theta: float) -> torch.Tensor:
    """How much of each pair's own frequency is kept: 1 for pairs that turn more than ``beta_fast`` times in the original
    context, 0 below ``beta_slow``, a straight line between."""

    def pair(turns: float) -> float:
        return size * math.log(yarn.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(pair(yarn.beta_fast)), 0), min(math.ceil(pair(yarn.beta_slow)), size - 1)
    ramp = (torch.arange(size // 2, dtype=torch.float32) - low) / (high - low if high != low else 0.001)
    return 1 - ramp.clamp(0, 1)


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """``0.1 mscale ln(factor) + 1``."""
    return 0.1 * mscale * math.log(factor) + 1.0


def attention_scale(spec: ModelSpec) -> float:
    """What scores are multiplied by: 1/sqrt(d), and for latent attention YaRN's ``mscale_all_dim`` squared."""
    scale = spec.qk_head_dim**-0.5
    yarn = spec.rope_scaling
    if spec.attention == "mla" and yarn is not None and yarn.mscale_all_dim:
        scale *= yarn_scale(yarn.factor, yarn.mscale_all_dim) ** 2
    return scale


def rotate(x_BTHd: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (i, i + r/2) of the first r channels by its position's angle; further channels stay as they are.
    Dot products then depend on relative positions only."""
    half = cos.shape[-1]
    a, b, rest = x_BTHd.split([half, half, x_BTHd.shape[-1] - 2 * half], dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)

"""Rotary position embedding (arXiv 2104.09864), in the half-split layout of Hugging Face's models.

Legend: B rows, T positions, H heads, d head size.
"""

import torch


def rope_angles(
    positions_BT: torch.Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, each [B, T, 1, d/2], of the positions' rotations; computed in fp32 and given in ``dtype``."""
    exponent = torch.arange(0, head_dim, 2, device=positions_BT.device, dtype=torch.float32) / head_dim
    angles = positions_BT[..., None, None].float() * theta**-exponent
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BTHd: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (i, i + d/2) by its position's angle. Dot products then depend on relative positions only."""
    a, b = x_BTHd.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

"""Root-mean-square layer norm (arXiv 1910.07467)."""

import torch
from torch import nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Scales the last dimension to unit root mean square, then by a learned weight. Shape and dtype are the input's."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)

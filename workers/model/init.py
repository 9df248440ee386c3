"""Initial values as a pure function of (seed, parameter name, shape): the mesh never changes where a run starts."""

import math

import torch
import xxhash

from workers.spec import ModelSpec

RESIDUAL_OUTPUTS = ("attention.out", "feed_forward.down", "shared.down")


def initial_value(spec: ModelSpec, seed: int, name: str, shape: torch.Size) -> torch.Tensor:
    """The whole (unsharded) fp32 value of a parameter or buffer, in host memory.

    Norm weights start at one, the router's bias at zero, matrices normal with ``initializer_range``; matrices that write to
    the residual stream are scaled down by sqrt(2 x layers) (GPT-2).
    """
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith(".bias"):
        return torch.zeros(shape)
    std = spec.initializer_range
    if name.endswith(RESIDUAL_OUTPUTS):
        std /= math.sqrt(2 * spec.num_hidden_layers)
    generator = torch.Generator().manual_seed(xxhash.xxh64_intdigest(f"{seed}/{name}".encode()))
    return torch.empty(shape).normal_(0.0, std, generator=generator)

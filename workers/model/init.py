"""Initial values as a pure function of (seed, parameter name, shape): the mesh never changes where a run starts."""

import torch
import xxhash

from workers.model.spec import ModelSpec

RESIDUAL_OUTPUTS = ("attention.out", "feed_forward.down", "shared.down")


def initial_value(spec: ModelSpec, seed: int, name: str, shape: torch.Size) -> torch.Tensor:
    """The whole (unsharded) fp32 value of a parameter or buffer, in host memory.

    Norm weights start at one, the router's bias at zero, matrices normal with ``initializer_range``. What writes to the
    residual stream starts at zero, so that every block begins as the identity (arXiv 2203.03466, D.2). An embedding that is
    not also the head has unit variance and its head starts at zero: the first steps then fit the head to fixed, nearly
    orthogonal features.
    """
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith((".bias", *RESIDUAL_OUTPUTS)) or name == "head":
        return torch.zeros(shape)
    std = 1.0 if name == "embedding" and not spec.tie_word_embeddings else spec.initializer_range
    generator = torch.Generator().manual_seed(xxhash.xxh64_intdigest(f"{seed}/{name}".encode()))
    return torch.empty(shape).normal_(0.0, std, generator=generator)

"""Random numbers without a state: each is a pure function of the integers that name it.

A draw named by (seed, sample, layer, position, channel) or by (seed, parameter, step, element) is the same on every mesh and
after every restart, and nothing has to be saved. (The idea of counter-based generators: Salmon et al., SC 2011.)
"""

from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

Part = int | torch.Tensor

INCREMENT = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIERS_64 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""SplitMix with Stafford's mix 13 (Steele et al., OOPSLA 2014)."""
MULTIPLIERS_32 = 0x7FEB352D, 0x846CA68B
"""Wellons' ``lowbias32``."""


def random_bits(*parts: Part) -> torch.Tensor:
    """32 uniform bits for each combination of ``parts``, as int32, all of whose values are equally likely.

    ``parts`` are integers or integer tensors, which broadcast; their order matters. The last counts modulo 2**32, the others
    in full. Put the part that is largest when broadcast last: those before it are folded into 64-bit keys at their own,
    smaller shape, so that only the last costs a pass over the whole result, in 32-bit arithmetic. (Half the memory traffic of
    int64, and a mask or a rounding wants no more.) The same bits on every device, eagerly and compiled.
    """
    key = fold(*parts[:-1])
    low, high = _signed(key, 32), _signed(key >> 32, 32)
    # Without the factor, keys that differ in their upper bits only would give the same draws in another order.
    x = (_signed(parts[-1], 32) ^ low) * (high | 1)
    if not isinstance(x, torch.Tensor):
        x = torch.tensor(_signed(x, 32), dtype=torch.int32)
    first, second = (_signed(m, 32) for m in MULTIPLIERS_32)
    x = (x ^ _shift(x, 16, 32)) * first
    x = (x ^ _shift(x, 15, 32)) * second
    return x ^ _shift(x, 16, 32)


def fold(*parts: Part) -> Part:
    """A 64-bit key, an integer or int64 tensor: what ``random_bits`` makes of all its parts but the last. A key is good as a
    part itself, so that what many draws share is folded once."""
    key: Part = 0
    first, second = (_signed(m, 64) for m in MULTIPLIERS_64)
    for part in parts:
        x = _signed((key ^ _signed(part, 64)) + INCREMENT, 64)
        x = _signed((x ^ _shift(x, 30, 64)) * first, 64)
        x = _signed((x ^ _shift(x, 27, 64)) * second, 64)
        key = x ^ _shift(x, 31, 64)
    return key


def uniform(*parts: Part) -> torch.Tensor:
    """``random_bits`` as fp32 in [0, 1), a multiple of 2**-24."""
    return _shift(random_bits(*parts), 8, 32).float() * 2.0**-24


def element_indices(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Where the elements of this rank's shard of ``tensor`` lie in the whole: an int64 index for each dimension, shaped to
    broadcast, so that ``random_bits(..., *indices)`` has the shard's shape and draws what the whole tensor would there."""
    indices = []
    for dim, size in enumerate(tensor.shape):
        index = torch.arange(size, device=tensor.device)
        if isinstance(tensor, DTensor):
            places = [Shard(0) if place.is_shard(dim) else Replicate() for place in tensor.placements]
            index = distribute_tensor(index, tensor.device_mesh, places, src_data_rank=None).to_local()
        indices.append(index.view(-1, *[1] * (tensor.ndim - dim - 1)))
    return tuple(indices)


def round_to_bf16(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """fp32 to bf16, up or down with the probability that makes its mean exact. ``bits`` (int32, as ``x``): the lower 16 are
    the draw."""
    # bf16 is the upper half of an fp32. A random lower half carries into it as often as the part cut off is large.
    return ((x.view(torch.int32) + (bits & 0xFFFF)) & -0x10000).view(torch.float32).bfloat16()


def _shift(x: Any, by: int, width: int) -> Any:
    """To the right, with zeros coming in, as torch's integers have a sign."""
    return (x >> by) & ((1 << (width - by)) - 1)


def _signed(x: Any, width: int) -> Any:
    """The lower ``width`` bits as a signed integer; a tensor's own arithmetic does that for its width."""
    if isinstance(x, torch.Tensor):
        return x.to(torch.int32 if width == 32 else torch.int64)
    half = 1 << (width - 1)
    return ((x + half) & ((1 << width) - 1)) - half

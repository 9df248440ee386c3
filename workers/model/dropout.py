"""Dropout (Srivastava et al., JMLR 2014) whose draws are functions of (seed, sample, layer, position, channel).

So they are the same on every mesh, after every restart and when activations are computed again.

Legend: B rows, T positions, D channels.
"""

from typing import NamedTuple

import torch

from workers.random import fold, uniform


class Noise(NamedTuple):
    """The draws of one micro-batch, or of one of its layers."""

    keys_BT: torch.Tensor
    """int64: (seed, sample, position in the row[, layer]), folded."""
    rate: torch.Tensor
    """Scalar, fp32: the share that is dropped. A tensor, so that a rate that moves compiles nothing anew."""

    @classmethod
    def of_rows(cls, seed: int, samples_B: torch.Tensor, length: int, rate: float) -> "Noise":
        """For rows of ``length`` tokens; ``samples_B`` are their numbers in the run."""
        device = samples_B.device
        keys_BT = _keys(seed, samples_B[:, None], torch.arange(length, device=device))
        # Filled on the device: copied there, it would be waited for.
        return cls(keys_BT, torch.full((), rate, dtype=torch.float32, device=device))

    def at(self, layer: int) -> "Noise":
        return self._replace(keys_BT=_keys(self.keys_BT, layer))


def _keys(*parts: int | torch.Tensor) -> torch.Tensor:
    keys = fold(*parts)
    assert isinstance(keys, torch.Tensor)
    return keys


def dropped(x_BTD: torch.Tensor, noise: Noise | None, site: int) -> torch.Tensor:
    """``x`` with channels dropped and the others scaled up to the same mean; ``site`` tells a layer's two branches apart."""
    if noise is None:
        return x_BTD
    draw_BTD = uniform(noise.keys_BT[..., None], site, torch.arange(x_BTD.shape[-1], device=x_BTD.device))
    # Rounded once, so that a half-precision run is scaled within half a bit of what evaluation expects.
    kept = (draw_BTD >= noise.rate).to(x_BTD.dtype) * (1 / (1 - noise.rate)).to(x_BTD.dtype)
    return x_BTD * kept

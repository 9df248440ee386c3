"""The recipe's courses over the optimizer steps: learning rate and Adam's betas. Pure functions of the step, and no torch, so
that a resumed run goes on exactly where it was and ``manta plan`` can show them."""

import math
from dataclasses import dataclass

from workers.spec import TrainingSpec


def learning_rate(training: TrainingSpec, step: int, total_steps: int) -> float:
    """The rate of optimizer step ``step`` (from 0): linear up over the warm-up, then by ``learning_rate_schedule``.

    ``cosine``: down to the floor, which the last step reaches (arXiv 1608.03983). ``wsd``: constant, then linear down to the
    floor over the last ``decay_fraction`` of all steps (warmup-stable-decay, arXiv 2404.06395). ``constant``: no decay.
    """
    warmup = training.resolved_warmup_steps(total_steps)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    floor = training.learning_rate * training.min_learning_rate_ratio
    return floor + (training.learning_rate - floor) * _height(training, step, warmup, total_steps)


def _height(training: TrainingSpec, step: int, warmup: int, total_steps: int) -> float:
    """Where between the floor (0) and the full rate (1) a step behind the warm-up is."""
    match training.learning_rate_schedule:
        case "constant":
            return 1.0
        case "wsd":
            decaying = min(max(round(training.decay_fraction * total_steps), 1), max(total_steps - warmup, 1))
            return min(max(total_steps - step - 1, 0) / decaying, 1.0)
        case "cosine":
            progress = (step - warmup + 1) / max(total_steps - warmup, 1)
            return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


@dataclass(frozen=True)
class Moments:
    """Adam's betas at one step, and their products over all steps up to it, which its bias correction is made of."""

    betas: tuple[float, float]
    products: tuple[float, float]


class Betas:
    """Adam's betas, on a straight line from ``betas`` at the first step to ``final_betas`` at the last.

    With betas that change, the moving averages start from zero with weight ``prod(beta_i)`` and not ``beta ** step``
    (arXiv 1412.6980, section 3). The products are those of the whole run, whatever step it was resumed from.
    """

    def __init__(self, training: TrainingSpec, total_steps: int) -> None:
        self._first, self._last = training.betas, training.final_betas or training.betas
        self._total_steps = total_steps
        self._step, self._products = -1, (1.0, 1.0)

    def at(self, step: int) -> Moments:
        """``step`` counts from 0. The next step costs nothing; any other is counted from the beginning."""
        if step < self._step:
            self._step, self._products = -1, (1.0, 1.0)
        while self._step < step:
            self._step += 1
            first, second = self._betas(self._step)
            self._products = (self._products[0] * first, self._products[1] * second)
        return Moments(self._betas(step), self._products)

    def _betas(self, step: int) -> tuple[float, float]:
        done = min(step / max(self._total_steps - 1, 1), 1.0)
        first, second = (a + (b - a) * done for a, b in zip(self._first, self._last, strict=True))
        return first, second

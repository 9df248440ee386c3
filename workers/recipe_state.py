"""What the recipe remembers from step to step beside weights and moments: in every checkpoint, and the same on every rank.

Pure values: each step or evaluation gives the next one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from workers.spec import AdaptiveDropout, TrainSpec

GROWTH, BACKOFF, GROWTH_INTERVAL, INITIAL_SCALE = 2.0, 0.5, 2000, 2.0**16
"""As torch's ``GradScaler`` has them."""


@dataclass(frozen=True)
class LossScale:
    """Dynamic loss scaling for fp16 (arXiv 1710.03740): as large as gradients allow, so that small ones are not lost."""

    value: float
    clean_steps: int = 0
    """Steps since the last overflow or growth."""

    def after(self, applied: bool) -> "LossScale":
        if not applied:
            return LossScale(self.value * BACKOFF)
        if self.clean_steps + 1 == GROWTH_INTERVAL:
            return LossScale(self.value * GROWTH)
        return replace(self, clean_steps=self.clean_steps + 1)


@dataclass(frozen=True)
class Dropout:
    """The rate in force, and the best held-out loss that it has led to."""

    rate: float
    best: float = float("inf")

    def after(self, held_out_loss: float, course: AdaptiveDropout) -> "Dropout":
        """Up a step where the held-out loss is worse than the best so far, as the model then fits what it has seen; down where
        it is better. Stays within the course's bounds."""
        change = -course.step if held_out_loss < self.best else course.step
        # Rounded, so that a walk up and down comes back to where it was.
        rate = round(min(max(self.rate + change, course.low), course.high), 6)
        return Dropout(rate, min(self.best, held_out_loss))


@dataclass(frozen=True)
class RecipeState:
    updates: int
    """Optimizer steps that were applied: where the schedules stand."""
    skipped: int
    """Steps in a row, up to the last one, that were not."""
    loss_scale: LossScale | None
    """fp16's; None: gradients are as they are."""
    dropout: Dropout

    @classmethod
    def start(cls, spec: TrainSpec) -> "RecipeState":
        adaptive = spec.training.adaptive_dropout
        scale = LossScale(INITIAL_SCALE) if spec.training.precision == "fp16" else None
        return cls(0, 0, scale, Dropout(spec.model.dropout if adaptive is None else adaptive.low))

    @property
    def scale(self) -> float:
        return 1.0 if self.loss_scale is None else self.loss_scale.value

    def after_step(self, applied: bool) -> "RecipeState":
        scale = self.loss_scale.after(applied) if self.loss_scale is not None else None
        return replace(self, updates=self.updates + applied, skipped=0 if applied else self.skipped + 1, loss_scale=scale)

    def after_evaluation(self, held_out_loss: float, spec: TrainSpec) -> "RecipeState":
        course = spec.training.adaptive_dropout
        return self if course is None else replace(self, dropout=self.dropout.after(held_out_loss, course))

    def state(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return asdict(self)

    @classmethod
    def of(cls, spec: TrainSpec, state: Mapping[str, Any]) -> "RecipeState":
        """The inverse of ``state``; what the spec fixes is the spec's."""
        fresh = cls.start(spec)
        scale, adaptive = state["loss_scale"], spec.training.adaptive_dropout is not None
        return cls(
            int(state["updates"]),
            int(state["skipped"]),
            LossScale(**scale) if fresh.loss_scale is not None and scale is not None else fresh.loss_scale,
            Dropout(**state["dropout"]) if adaptive else fresh.dropout,
        )

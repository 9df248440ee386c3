"""A population that trains nothing: what a learning rate is worth changes as training goes on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tuning.trials import Assignment, Ended, ForkFailed, Measured, News


@dataclass
class Disk:
    """What outlives a driver: (trial, step) -> weight."""

    saved: dict[tuple[int, int], float] = field(default_factory=dict)


@dataclass
class FakePopulation:
    """Trials of one weight, which falls fastest at a learning rate of 0.5 at first and of 0.005 at the end: a rate that is good
    at first is poor later."""

    disk: Disk
    slots: int = 1
    begun: list[tuple[int, int]] = field(default_factory=list)
    """(trial, step that it begins at)"""
    fails: Mapping[int, int] = field(default_factory=dict)
    """Trial -> step at which it fails."""
    unforkable: Sequence[int] = ()
    _here: dict[int, tuple[Assignment, int, float]] = field(default_factory=dict)
    _news: list[News] = field(default_factory=list)

    @property
    def free(self) -> int:
        return self.slots - len(self._here)

    def begin(self, assignment: Assignment) -> None:
        assert self.free > 0
        steps = [step for number, step in self.disk.saved if number == assignment.number]
        at = max(steps, default=0)
        self.begun.append((assignment.number, at))
        self._here[assignment.number] = (assignment, at, self.disk.saved.get((assignment.number, at), 8.0))

    def fork(self, parent: int, child: int, step: int) -> None:
        if child in self.unforkable:
            raise ForkFailed(f"the checkpoint of trial {parent} at step {step} cannot be copied")
        self.disk.saved[child, step] = self.disk.saved[parent, step]

    def answer(self, number: int, go_on: bool) -> None:
        assert go_on, "no member is stopped"

    def news(self, timeout: float) -> Sequence[News]:
        for number, (assignment, at, weight) in [*self._here.items()]:
            if at == assignment.until:
                self.disk.saved[number, at] = weight
                del self._here[number]
                return [Ended(number, "paused")]
            if self.fails.get(number) == at + 10:
                del self._here[number]
                return [Ended(number, "failed", code="training_diverged", reason="the loss is no number")]
            for step in range(at, at + 10):
                weight -= progress(assignment.job["training"].get("learning_rate", 0.01), step)
            at += 10
            if at == 60:
                del self._here[number]
                return [Ended(number, "succeeded", {"eval_loss": weight})]
            self._here[number] = (assignment, at, weight)
            return [Measured(number, at, {"eval_loss": weight})]
        return []

    def close(self) -> None:
        self._here.clear()


def progress(rate: float, step: int) -> float:
    best = -0.3 - 2 * step / 60
    return 0.1 - 0.05 * abs(math.log10(float(rate)) - best)

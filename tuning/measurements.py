"""What a trial measures over all its beginnings: one that was interrupted ends with the figures of the whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data.files import write_atomically
from workers.plan import plan
from workers.spec import TrainSpec

_RESULTS = ("eval_loss", "train_loss", "tokens_per_second", "seconds", "mfu")
_RATES = ("tokens_per_second", "mfu")


class Measurements(BaseModel):
    metrics: dict[str, float] = {}
    """The last value of each."""
    seconds: float = 0.0
    """That earlier beginnings took, as far as they were written down."""
    step_seconds: float = 0.0
    """Of the steps that were logged."""
    integrals: dict[str, float] = {}
    """Of the rates over ``step_seconds``."""

    @classmethod
    def read(cls, path: Path) -> "Measurements":
        """Nothing, where there is no such file."""
        return cls.model_validate_json(path.read_bytes()) if path.exists() else cls()

    def write(self, path: Path, seconds: float) -> None:
        """For the trial's next beginning; this one has taken ``seconds``."""
        write_atomically(path, self.model_copy(update={"seconds": self.seconds + seconds}).model_dump_json().encode())

    def hear(self, values: Mapping[str, float]) -> None:
        """What was reported of a step."""
        self.metrics.update(values)
        seconds = values.get("step_seconds", 0.0)
        self.step_seconds += seconds
        for name in _RATES:
            if seconds and name in values:
                self.integrals[name] = self.integrals.get(name, 0.0) + values[name] * seconds

    def at_the_end(self, result: Mapping[str, Any], job: TrainSpec) -> dict[str, float]:
        """The figures of a trial that succeeded: the last value of each metric, rates over all steps that were logged, and
        ``memory_bytes`` (of one device, as planned).

        Args:
            result: ``workers.attempt.Summary`` of the last beginning, which knows of no other: it may have found the trial
                trained, and had no step to take.
        """
        known = {name: float(result[name]) for name in _RESULTS if result.get(name) is not None}
        if "seconds" in known:
            known["seconds"] += self.seconds
        rates = {name: integral / self.step_seconds for name, integral in self.integrals.items()}
        return {**self.metrics, **known, **rates, "memory_bytes": float(plan(job).memory.total)}

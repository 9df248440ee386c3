"""Where trials run, as the study's loop sees it: what it asks for, and what it hears."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from data.errors import MantaError


@dataclass(frozen=True)
class Assignment:
    """Train the job of a trial, from its newest checkpoint if there is one."""

    number: int
    job: dict[str, Any]
    """A training job, as a user would write it."""
    until: int | None = None
    """An optimizer step, of an evaluation, at which it ends as ``paused``: saved there, to be begun again."""


@dataclass(frozen=True)
class Measured:
    """A held-out evaluation. The trial waits there until ``Trials.answer``."""

    number: int
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Ended:
    """A trial trains no longer. ``stopped``: it was asked to; ``paused``: it is where its assignment ends."""

    number: int
    outcome: Literal["succeeded", "stopped", "failed", "paused"]
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each, when it succeeded."""
    code: str = ""
    reason: str = ""
    retry: bool = False
    """It failed of something that another run may be spared."""


News = Measured | Ended


class Trials(Protocol):
    """Every implementation passes ``tests/tuning/test_trials.py``."""

    @property
    def free(self) -> int:
        """How many trials could begin at once."""

    def begin(self, assignment: Assignment) -> None: ...

    def answer(self, number: int, go_on: bool) -> None:
        """Of a trial that was measured: train on, or stop and say so."""

    def news(self, timeout: float) -> Sequence[News]:
        """What happened; waits up to ``timeout`` seconds for something to."""

    def close(self) -> None:
        """Let go of all trials; begun again, by another attempt, they go on from what they have done."""


class PopulationTrials(Trials, Protocol):
    """Trials that pause, and that others may begin from."""

    def fork(self, parent: int, child: int, step: int) -> None:
        """Let trial ``child`` begin where ``parent`` paused: at ``step``, with its weights and optimizer. Twice is as once.

        Raises:
            ForkFailed.
        """


class ForkFailed(MantaError):
    """What a trial is to begin from is gone, or cannot be copied."""

    code: ClassVar[str] = "fork_failed"
    status: ClassVar[int] = 409

"""Trials that train nothing: an objective says what each measures, and one step is taken whenever news are asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuning.study import Study
from tuning.trials import Assignment, Ended, Measured, News
from workers.attempt import Desired
from workers.reporter import NullReporter

Objective = Callable[[Mapping[str, Any], int], Mapping[str, float] | Ended]
"""(job, optimizer step) -> metrics, or how the trial ends there."""


class Killed(BaseException):
    """As a driver is: no ``finally`` of the loop's may count on more."""


class Recorder(NullReporter):
    """A reporter whose journal outlives the driver; ``kill_after`` lines, the driver dies."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.kill_after: int | None = None

    def journal(self, first: int, lines: Sequence[Mapping[str, Any]]) -> None:
        assert first == len(self.lines), "two drivers wrote at once"
        for line in lines:
            if self.kill_after is not None and len(self.lines) >= self.kill_after:
                raise Killed
            self.lines.append(dict(line))


@dataclass
class FakeTrials:
    objective: Objective
    evaluations: Sequence[int] = (10, 20, 30)
    """Steps at which a trial measures; the last is its end."""
    slots: int = 1
    begun: list[Assignment] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    most_at_once: int = 0
    """Trials that had begun and not ended."""
    desired: Desired = Desired.RUNNING
    _at: dict[int, int] = field(default_factory=dict)
    _waits: set[int] = field(default_factory=set)
    _news: list[News] = field(default_factory=list)
    _jobs: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return self.slots - len(self._at)

    def begin(self, assignment: Assignment) -> None:
        assert self.free > 0
        self.begun.append(assignment)
        self._at[assignment.number] = 0
        self.most_at_once = max(self.most_at_once, len(self._at))
        self._jobs[assignment.number] = assignment.job

    def answer(self, number: int, go_on: bool) -> None:
        self._waits.remove(number)
        if not go_on:
            self.stopped.append(number)
            del self._at[number]
            self._news.append(Ended(number, "stopped"))

    def news(self, timeout: float) -> Sequence[News]:
        for number in [each for each in self._at if each not in self._waits]:
            step = self.evaluations[self._at[number]]
            self._at[number] += 1
            said = self.objective(self._jobs[number], step)
            if isinstance(said, Ended):
                said = Ended(number, said.outcome, said.metrics, said.code, said.reason, said.retry)
            elif step == self.evaluations[-1]:
                said = Ended(number, "succeeded", said)
            if isinstance(said, Ended):
                del self._at[number]
                self._news.append(said)
            else:
                self._waits.add(number)
                self._news.append(Measured(number, step, said))
            break
        news, self._news = self._news, []
        return news

    def close(self) -> None:
        self._at.clear()


def points(study: Study) -> list[dict[str, Any]]:
    return [study.point(trial.number) for trial in study.trials]

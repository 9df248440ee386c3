"""The study's loop: ask for a point, begin a trial, hear what it measures, let it go on or stop it, tell what it came to.

All it knows lies in the study's journal, so it may be killed anywhere and goes on from there. With one trial at a time every
decision is a function of the journal alone.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from data.errors import MantaError
from tuning.ask import next_point
from tuning.asking import BASE, Suggestion
from tuning.samplers import Exhausted
from tuning.scheduler import judged_at, should_stop
from tuning.spec import AshaScheduler, HyperbandScheduler
from tuning.study import BRACKET, RETRIES, RUNGS, Study
from tuning.trials import Assignment, Ended, Measured, Trials
from workers.spec import TrainSpec

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
NOTE_SECONDS = 30.0
"""No more of a study's time is lost with a driver that is killed."""
HOPELESS = 5
"""So many trials that failed, and none that did not, end a study."""


class MetricMissing(MantaError):
    """A trial ended well and did not report what the study asks for, and none did before: no other will."""

    code: ClassVar[str] = "metric_missing"
    status: ClassVar[int] = 422


class TrialsFailed(MantaError):
    """Every trial failed."""

    code: ClassVar[str] = "trials_failed"
    status: ClassVar[int] = 409


class NothingFeasible(MantaError):
    """Trials ended, and every one was beyond a limit."""

    code: ClassVar[str] = "no_feasible_trial"
    status: ClassVar[int] = 409


class Loop:
    """``clock`` is monotonic seconds. ``pulse`` is called at least once a second or so; what it raises ends the attempt."""

    def __init__(self, study: Study, trials: Trials, pulse: Callable[[], None], clock: Callable[[], float]) -> None:
        self._study, self._trials, self._pulse, self._clock = study, trials, pulse, clock
        self._waiting = deque(trial.number for trial in study.running)
        """Begun in the journal and not yet here."""
        self._here: set[int] = set()
        self._exhausted = False
        self._noted = study.seconds_spent
        self._began = clock() - self._noted

    def run(self) -> None:
        """
        Raises:
            MetricMissing, TrialsFailed, NothingFeasible: there is no result.
        """
        try:
            self._search()
        finally:
            self._spend(self._seconds())
        self._require_result()

    def _search(self) -> None:
        while True:
            self._pulse()
            if self._seconds() - self._noted >= NOTE_SECONDS:
                self._spend(self._seconds())
            self._begin()
            if not self._here and not self._study.running:
                return
            for news in self._trials.news(POLL_SECONDS):
                if isinstance(news, Measured):
                    self._measured(news)
                else:
                    self._ended(news)

    def _begin(self) -> None:
        while self._trials.free > 0:
            if self._waiting:
                number = self._waiting.popleft()
            elif self._exhausted or self._study.budget_spent(self._seconds()):
                return
            else:
                try:
                    suggestion = next_point(self._study)
                except Exhausted:
                    self._exhausted = True
                    return
                number = self._study.begin(suggestion, self._judged_at(suggestion))
            self._start(number)

    def _judged_at(self, suggestion: Suggestion) -> dict[str, Any]:
        """The attributes that say where a new trial is judged: it keeps its rungs when the budget grows. The base has none, for
        what the search has to beat is known to its end."""
        spec, space = self._study.spec, self._study.space
        if suggestion.sampler == BASE or not isinstance(spec.scheduler, AshaScheduler | HyperbandScheduler):
            return {}
        total_steps = TrainSpec.model_validate(space.document(suggestion.point)).total_steps
        rungs, bracket = judged_at(spec.scheduler, spec.budget, len(self._study.trials), total_steps)
        return {RUNGS: rungs, BRACKET: bracket}

    def _start(self, number: int, until: int | None = None) -> None:
        self._here.add(number)
        try:
            self._trials.begin(Assignment(number, self._study.space.document(self._study.point(number)), until))
        except MantaError as error:  # its data cannot be prepared, say: other points have other data
            self._ended(Ended(number, "failed", code=error.code, reason=error.detail))

    def _seconds(self) -> float:
        """Of the study's time."""
        return self._clock() - self._began

    def _spend(self, seconds: float) -> None:
        if seconds > self._noted:
            self._study.spend(seconds)
            self._noted = seconds

    def _measured(self, news: Measured) -> None:
        """The trial waits; what it hears depends on the journal alone, so a trial that is run again hears the same."""
        value = news.metrics.get(self._study.spec.objectives[0].metric)
        if value is None or not math.isfinite(value):
            self._trials.answer(news.number, go_on=True)
            return
        later = [step for step in self._study.trial(news.number).intermediate_values if step > news.step]
        self._study.report(news.number, news.step, value)
        reason = None if later else self._against(news.number, news.step)
        if reason is None:
            self._trials.answer(news.number, go_on=True)
            return
        self._study.prune(news.number, reason)
        self._trials.answer(news.number, go_on=False)

    def _against(self, number: int, step: int) -> str | None:
        """Why a trial that has measured at ``step`` is to stop."""
        spec = self._study.spec
        if not isinstance(spec.scheduler, AshaScheduler | HyperbandScheduler):
            return None
        minimize = spec.objectives[0].direction == "minimize"
        return should_stop(spec.scheduler, self._study.courses, number, step, minimize)

    def _ended(self, news: Ended) -> None:
        self._here.discard(news.number)
        if news.outcome in ("stopped", "paused"):
            return
        if news.outcome == "failed":
            self._failed(news)
            return
        spec, metrics = self._study.spec, dict(news.metrics)
        if not self._reports_what_is_asked(news.number, metrics):
            return
        names = [each.metric for each in spec.objectives] + [each.metric for each in spec.limits]
        wanted = {name: metrics[name] for name in names}
        if unusable := ", ".join(f"{name} {value}" for name, value in wanted.items() if not math.isfinite(value)):
            self._study.fail(news.number, f"no number: {unusable}")
            self._require_hope(news.number)
            return
        self._study.complete(news.number, [metrics[each.metric] for each in spec.objectives], metrics)

    def _failed(self, news: Ended) -> None:
        retries = self._study.retries(news.number)
        if news.retry and retries < self._study.spec.max_retries:
            logger.warning("trial %d is run again: %s", news.number, news.reason)
            self._study.note(news.number, RETRIES, retries + 1)
            self._waiting.append(news.number)
            return
        self._study.fail(news.number, f"{news.code}: {news.reason}" if news.code else news.reason)
        self._require_hope(news.number)

    def _reports_what_is_asked(self, number: int, metrics: Mapping[str, float]) -> bool:
        """A trial that does not is failed. Where none before it did, none will, and the study ends."""
        spec = self._study.spec
        wanted = [(f"/objectives/{i}/metric", each.metric) for i, each in enumerate(spec.objectives)]
        wanted += [(f"/limits/{i}/metric", each.metric) for i, each in enumerate(spec.limits)]
        for pointer, name in wanted:
            if name not in metrics:
                self._study.fail(number, f"{MetricMissing.code}: it did not report {name!r}")
                standings = self._study.standings()
                if standings["complete"] or standings["infeasible"]:
                    return False
                raise MetricMissing(f"no trial reports {name!r}; they report {', '.join(sorted(metrics))}", pointer=pointer)
        return True

    def _require_hope(self, number: int) -> None:
        standings = self._study.standings()
        if standings["failed"] >= HOPELESS and standings["failed"] == sum(standings.values()) - standings["running"]:
            raise TrialsFailed(f"all of {standings['failed']} trials failed; trial {number}: {self._study.reason(number)}")

    def _require_result(self) -> None:
        standings = self._study.standings()
        if standings["complete"] or self._study.best():
            return
        if standings["infeasible"]:
            names = ", ".join(limit.metric for limit in self._study.spec.limits)
            raise NothingFeasible(
                f"{standings['infeasible']} trials ended, and every one is beyond a limit ({names})", pointer="/limits"
            )
        raise TrialsFailed(f"none of {sum(standings.values())} trials has a result")

"""A population's loop: its members train in turn to an exploit step, are saved there and leave their slots; when all have come,
the worst take over from the best, and all go on.

An exploit is one entry of the journal: the trial that begins, with its place, parent, step and point. That the trial before
it in its place has ended, and the copied checkpoint, follow from it; whoever goes on with the study sees to them again.
"""

import logging
from collections.abc import Callable
from typing import cast

from tuning.ask import next_point
from tuning.asking import Suggestion
from tuning.loop import Loop, TrialsFailed
from tuning.population import Exploit, Member, exploits, explore
from tuning.samplers import Exhausted
from tuning.spec import PopulationScheduler
from tuning.study import AT_STEP, PARENT, PLACE, Study, born_at, standing
from tuning.trials import Ended, ForkFailed, PopulationTrials

logger = logging.getLogger(__name__)


class PopulationLoop(Loop):
    """Decides the same however many members train at once."""

    def __init__(self, study: Study, trials: PopulationTrials, pulse: Callable[[], None], clock: Callable[[], float]) -> None:
        super().__init__(study, trials, pulse, clock)
        self._population = trials
        self._scheduler = cast(PopulationScheduler, study.spec.scheduler)
        base = study.spec.base
        self._steps = self._scheduler.exploit_steps(base.training, base.total_steps)
        self._waiting.clear()
        self._arrived: set[int] = set()
        """Trials that are saved at the pending step."""

    @property
    def _pending(self) -> int | None:
        """The exploit step that members train to; None: to their end."""
        return next((step for step in self._steps if step > self._study.exploited_until), None)

    def _begin(self) -> None:
        if not self._here and not self._waiting:
            self._next_round()
        while self._trials.free > 0 and self._waiting:
            self._start(self._waiting.popleft(), until=self._pending)

    def _next_round(self) -> None:
        """Every member trained as far as it was to, or this driver has just begun."""
        self._found()
        step, running = self._pending, {trial.number for trial in self._study.running}
        was_deciding = any(born_at(trial) == step for trial in self._study.own)
        if step is not None and (was_deciding or (running and running <= self._arrived)):
            self._exploit(step)
        self._waiting.extend(trial.number for trial in self._study.running)

    def _found(self) -> None:
        """Begin all members, before any trains: where they begin depends on nothing that they measure."""
        study = self._study
        if any(born_at(trial) for trial in study.own):
            return
        while len(study.own) < self._scheduler.population and not study.budget_spent(self._seconds()):
            try:
                study.begin(next_point(study), {PLACE: len(study.own)})
            except Exhausted:
                return

    def _exploit(self, step: int) -> None:
        spec = self._study.spec
        members = self._members(step)
        if not any(step in member.curve for member in members):
            logger.warning("no trial measured %s at step %d: nobody takes over", spec.objectives[0].metric, step)
        minimize = spec.objectives[0].direction == "minimize"
        for each in exploits(members, step, self._scheduler, minimize, spec.seed):
            child = self._child(each, step)
            if child is None:
                break
            if standing(self._study.trial(each.number)) == "running":
                self._study.prune(each.number, f"exploited trial {each.parent} at step {step}")
            if standing(self._study.trial(child)) == "running":
                self._fork(each.parent, child, step)
        self._study.exploited(step)
        self._arrived.clear()

    def _members(self, step: int) -> list[Member]:
        """The trial of each place that came to ``step``, or failed on the way."""
        newest = {int(trial.user_attrs[PLACE]): trial for trial in self._study.own if born_at(trial) < step}
        return [
            Member(place, trial.number, trial.intermediate_values, standing(trial) == "failed")
            for place, trial in sorted(newest.items())
        ]

    def _child(self, exploit: Exploit, step: int) -> int | None:
        """The trial that takes over; None where the budget has no more. One that was begun before is that very one."""
        study = self._study
        for trial in study.own:
            if (trial.user_attrs[PLACE], born_at(trial)) == (exploit.place, step):
                return trial.number
        if study.budget_spent(self._seconds()):
            return None
        point = explore(study, study.point(exploit.parent), self._scheduler, exploit.number, step)
        return study.begin(Suggestion(point, "pbt"), {PLACE: exploit.place, PARENT: exploit.parent, AT_STEP: step})

    def _fork(self, parent: int, child: int, step: int) -> None:
        try:
            self._population.fork(parent, child, step)
        except ForkFailed as error:
            logger.warning("trial %d cannot begin from trial %d: %s", child, parent, error.detail)
            self._study.fail(child, f"{error.code}: {error.detail}")

    def _ended(self, news: Ended) -> None:
        super()._ended(news)
        if news.outcome == "paused":
            self._arrived.add(news.number)

    def _require_hope(self, number: int) -> None:
        """A member that fails is replaced at the next exploit, as long as there is one to take over from."""
        if self._study.running or self._study.best():
            return
        failed = self._study.standings()["failed"]
        raise TrialsFailed(f"{failed} trials failed, and no member is left; trial {number}: {self._study.reason(number)}")

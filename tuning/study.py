"""A study's trials in its journal: which there are, what became of them. One entry begins a trial, with its whole point."""

import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuning.asking import Suggestion
from tuning.compat_optuna import set_constraint
from tuning.scheduler import Course
from tuning.space import JobSpace, Point, key
from tuning.spec import StudySpec
from tuning.views import Standing
from workers.spec import TrainSpec

NAME = "study"
"""Of the only study in its journal."""

REASON, RETRIES, SAMPLER, METRICS, ORIGIN = "reason", "retries", "sampler", "metrics", "origin"
RUNGS, BRACKET = "rungs", "bracket"
PLACE, PARENT, AT_STEP = "place", "parent", "at_step"
"""User attributes of a trial: where and among whom a scheduler judges it; the last three of a population's members, where in
it, and with whose weights of which step."""

SECONDS, EXPLOITED = "seconds", "exploited"
"""User attributes of the study: how long its driver has worked at it, and the last exploit step that is decided."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study:
    def __init__(self, spec: StudySpec, storage: BaseStorage) -> None:
        self.spec = spec
        self.space = JobSpace(spec)
        self._storage = storage
        try:
            self.optuna = optuna.load_study(study_name=NAME, storage=storage)
        except KeyError:  # asked to create what is there, Optuna writes a line before it looks, which nobody else's journal has
            directions = [each.direction for each in spec.objectives]
            self.optuna = optuna.create_study(storage=storage, study_name=NAME, directions=directions)
        self._id = storage.get_study_id_from_name(NAME)
        self._total_steps: dict[int, int] = {}
        self._keys: set[str] = set()
        self._keyed = 0

    @property
    def trials(self) -> Sequence[FrozenTrial]:
        """By number; not to be changed."""
        return self.optuna.get_trials(deepcopy=False)

    def trial(self, number: int) -> FrozenTrial:
        return self.trials[number]

    @property
    def running(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials if trial.state is TrialState.RUNNING]

    def point(self, number: int) -> Point:
        return self.space.decode(self.trial(number).params)

    @property
    def tried(self) -> Container[str]:
        """The keys of all trials' points; a point is decided when its trial begins, so that only new trials are looked at."""
        trials = self.trials
        self._keys.update(key(self.space.decode(trial.params)) for trial in trials[self._keyed :])
        self._keyed = len(trials)
        return self._keys

    @property
    def own(self) -> list[FrozenTrial]:
        """Without those of earlier studies."""
        return [trial for trial in self.trials if ORIGIN not in trial.user_attrs]

    def adopt(self, name: str, earlier: "Study") -> None:
        """Know the complete trials of an earlier study, if no trial of this one was begun. They are held against the limits of
        this study; one that did not measure what is limited stays unknown, and so does one whose point is no job here.
        Adopting twice changes nothing."""
        if self.own:
            return
        known = [trial.user_attrs[ORIGIN] for trial in self.trials]
        for trial in earlier.own:
            origin = [name, trial.number]
            if trial.state is not TrialState.COMPLETE or origin in known:
                continue
            metrics = trial.user_attrs[METRICS]
            if not all(limit.metric in metrics for limit in self.spec.limits):
                continue
            if self.space.reason_against(self.space.decode(trial.params)) is not None:
                continue
            copy = create_trial(
                params=trial.params,
                distributions=trial.distributions,
                values=trial.values,
                intermediate_values=trial.intermediate_values,
                constraints=self._excesses(metrics),
                user_attrs={SAMPLER: name, METRICS: metrics, ORIGIN: origin},
            )
            self.optuna.add_trial(copy)

    def standings(self) -> Counter[str]:
        """How many trials came to what."""
        return Counter(standing(trial) for trial in self.own)

    def retries(self, number: int) -> int:
        return int(self.trial(number).user_attrs.get(RETRIES, 0))

    def reason(self, number: int) -> str:
        return str(self.trial(number).user_attrs.get(REASON, ""))

    def total_steps(self, number: int) -> int:
        if number not in self._total_steps:  # a whole job is made to count them
            self._total_steps[number] = TrainSpec.model_validate(self.space.document(self.point(number))).total_steps
        return self._total_steps[number]

    def steps_taken(self, trial: FrozenTrial) -> int:
        """Optimizer steps that a trial has cost, as far as it was measured."""
        last = self.total_steps(trial.number) if trial.state is TrialState.COMPLETE else trial.last_step
        return max((last or 0) - born_at(trial), 0)

    @property
    def seconds_spent(self) -> float:
        return float(self._storage.get_study_user_attrs(self._id).get(SECONDS, 0.0))

    def spend(self, seconds: float) -> None:
        """``seconds`` of the study's time are spent so far."""
        self._storage.set_study_user_attr(self._id, SECONDS, round(seconds, 1))

    def budget_spent(self, seconds: float) -> bool:
        budget = self.spec.budget
        return (
            (budget.trials is not None and len(self.own) >= budget.trials)
            or (budget.steps is not None and sum(map(self.steps_taken, self.own)) >= budget.steps)
            or (budget.seconds is not None and seconds >= budget.seconds)
        )

    @property
    def exploited_until(self) -> int:
        """The last step at which it is decided who takes over from whom; 0 before the first."""
        return int(self._storage.get_study_user_attrs(self._id).get(EXPLOITED, 0))

    def exploited(self, step: int) -> None:
        self._storage.set_study_user_attr(self._id, EXPLOITED, step)

    def lineage(self, number: int) -> list[tuple[int, Point]]:
        """The points that a trial's weights were trained with, each from its step on."""
        trial = self.trial(number)
        before = self.lineage(trial.user_attrs[PARENT]) if PARENT in trial.user_attrs else []
        return [*before, (born_at(trial), self.point(number))]

    @property
    def courses(self) -> list[Course]:
        """Of all trials, by number. One that diverged or is beyond a limit holds nobody back."""
        return [
            Course(
                {} if standing(trial) in ("failed", "infeasible") else trial.intermediate_values,
                trial.user_attrs.get(RUNGS, ()),
                trial.user_attrs.get(BRACKET),
                trial.state is TrialState.PRUNED,
            )
            for trial in self.trials
        ]

    def begin(self, suggestion: Suggestion, attributes: Mapping[str, Any] | None = None) -> int:
        """A new trial, as one entry: it is there whole or not at all. Returns its number."""
        number = len(self.trials)
        trial = create_trial(
            state=TrialState.RUNNING,
            params=self.space.encode(suggestion.point),
            distributions={path: self.space.distributions[path] for path in suggestion.point},
            user_attrs={SAMPLER: suggestion.sampler, **(attributes or {})},
            system_attrs=dict(suggestion.system),
        )
        trial.datetime_start = datetime.now()
        self.optuna.add_trial(trial)
        return number

    def report(self, number: int, step: int, value: float) -> None:
        """A value on the way. What was reported for that step before stands."""
        if step not in self.trial(number).intermediate_values:
            self._storage.set_trial_intermediate_value(self._trial_id(number), step, value)

    def note(self, number: int, name: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._trial_id(number), name, value)

    def complete(self, number: int, values: Sequence[float], metrics: Mapping[str, float]) -> None:
        """A trial that came to its end. One that is beyond a limit is infeasible."""
        excesses = self._excesses(metrics)
        for name, excess in excesses.items():
            set_constraint(self._storage, self._trial_id(number), name, excess)
        if beyond := ", ".join(f"{name} {metrics[name]:.5g}" for name, excess in excesses.items() if excess > 0):
            self.note(number, REASON, f"beyond a limit: {beyond}")
        self.note(number, METRICS, {each: value for each, value in metrics.items() if math.isfinite(value)})  # JSON has no NaN
        self.optuna.tell(number, list(values))

    def _excesses(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """By how much each limit is passed; zero or less is within it."""
        excesses = {}
        for limit in self.spec.limits:
            value = metrics[limit.metric]
            over = [value - limit.at_most] if limit.at_most is not None else []
            under = [limit.at_least - value] if limit.at_least is not None else []
            excesses[limit.metric] = max(over + under)
        return excesses

    def prune(self, number: int, reason: str) -> None:
        self.note(number, REASON, reason)
        self.optuna.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        self.note(number, REASON, reason)
        self.optuna.tell(number, state=TrialState.FAIL)

    def best(self) -> list[FrozenTrial]:
        """The best feasible trial; of several objectives, those that no other dominates."""
        if not any(feasible(trial) for trial in self.trials):
            return []
        return [self.optuna.best_trial] if len(self.spec.objectives) == 1 else self.optuna.best_trials

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


def born_at(trial: FrozenTrial) -> int:
    """The optimizer step from which a trial trains."""
    return int(trial.user_attrs.get(AT_STEP, 0))


def standing(trial: FrozenTrial) -> Standing:
    """What a trial came to, in the words of Manta."""
    match trial.state:
        case TrialState.COMPLETE:
            return "complete" if all(excess <= 0 for excess in trial.constraints.values()) else "infeasible"
        case TrialState.PRUNED:
            return "pruned"
        case TrialState.FAIL:
            return "failed"
    return "running"


def feasible(trial: FrozenTrial) -> bool:
    """Whether a trial has a result that counts."""
    return standing(trial) == "complete"

"""What a study shows of itself: as the driver's result, over the API, in the terminal."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial
from pydantic import BaseModel

from tuning.journal import KnownJournal, Line
from tuning.samplers import choose
from tuning.spec import StudySpec
from tuning.study import METRICS, REASON, RETRIES, SAMPLER, Standing, Study, standing


class TrialView(BaseModel):
    number: int
    state: Standing
    point: dict[str, Any]
    """Dotted paths into a training job, and their values."""
    values: dict[str, float]
    """Of the objectives, by metric; empty until it is complete."""
    curve: dict[int, float]
    """Optimizer step -> first objective, as far as it was measured on the way."""
    steps: int
    """Optimizer steps that it has cost, as far as is known."""
    total_steps: int
    sampler: str
    """What its point is from; ``base`` and ``points`` are the study's own."""
    reason: str | None
    """Why it was stopped, or failed."""
    retries: int
    metrics: dict[str, float]
    """Everything that a complete trial measured."""
    started_at: datetime
    ended_at: datetime | None


class StudySummary(BaseModel):
    best: list[TrialView]
    """The best feasible trial; of several objectives, the Pareto front."""
    trials: dict[Standing, int]
    steps: int
    """Optimizer steps of all trials."""
    steps_saved: int
    """What stopped trials would have cost more."""
    seconds: float
    sampler: str
    sampler_reason: str


def read_study(spec: StudySpec, lines: Sequence[Line]) -> Study:
    """The study that a journal tells of; nothing can be added to it."""
    return Study(spec, JournalStorage(KnownJournal(lines)))


def trial_view(study: Study, trial: FrozenTrial) -> TrialView:
    names = [each.metric for each in study.spec.objectives]
    state = standing(trial)
    complete = state in ("complete", "infeasible")
    return TrialView(
        number=trial.number,
        state=state,
        point=study.point(trial.number),
        values=dict(zip(names, trial.values, strict=True)) if complete else {},
        curve=trial.intermediate_values,
        steps=study.steps_taken(trial),
        total_steps=study.total_steps(trial.number),
        sampler=trial.user_attrs[SAMPLER],
        reason=trial.user_attrs.get(REASON),
        retries=trial.user_attrs.get(RETRIES, 0),
        metrics=trial.user_attrs.get(METRICS, {}),
        started_at=_utc(trial.datetime_start),
        ended_at=None if trial.datetime_complete is None else _utc(trial.datetime_complete),
    )


def summary(study: Study) -> StudySummary:
    pruned = [trial for trial in study.trials if standing(trial) == "pruned"]
    sampler, reason = study.spec.sampler.type, "as the study asks"
    if sampler == "auto":
        sampler, reason = choose(study.spec, study.space)
    return StudySummary(
        best=[trial_view(study, trial) for trial in study.best()],
        trials=dict(study.standings()),
        steps=sum(map(study.steps_taken, study.trials)),
        steps_saved=sum(study.total_steps(trial.number) - study.steps_taken(trial) for trial in pruned),
        seconds=study.seconds_spent,
        sampler=sampler,
        sampler_reason=reason,
    )


def _utc(local: datetime | None) -> datetime:
    assert local is not None, "a trial that was begun has a beginning"
    return local.astimezone()

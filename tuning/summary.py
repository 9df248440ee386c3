"""From a study's trials to what it shows."""

from datetime import datetime

from optuna.trial import FrozenTrial

from tuning.samplers import choose
from tuning.study import METRICS, PARENT, PLACE, REASON, RETRIES, SAMPLER, Study, born_at, standing
from tuning.views import StudySummary, TrialView


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
        parent=trial.user_attrs.get(PARENT),
        at_step=born_at(trial),
        lineage=study.lineage(trial.number) if study.spec.scheduler.type == "pbt" else [],
        reason=trial.user_attrs.get(REASON),
        retries=trial.user_attrs.get(RETRIES, 0),
        metrics=trial.user_attrs.get(METRICS, {}),
        started_at=_utc(trial.datetime_start),
        ended_at=None if trial.datetime_complete is None else _utc(trial.datetime_complete),
    )


def summary(study: Study) -> StudySummary:
    pruned = [trial for trial in study.own if standing(trial) == "pruned" and PLACE not in trial.user_attrs]
    sampler, reason = study.spec.sampler.type, "as the study asks"
    if sampler == "auto":
        sampler, reason = choose(study.spec, study.space)
    return StudySummary(
        best=[trial_view(study, trial) for trial in study.best()],
        trials=dict(study.standings()),
        steps=sum(map(study.steps_taken, study.own)),
        steps_saved=sum(study.total_steps(trial.number) - study.steps_taken(trial) for trial in pruned),
        seconds=study.seconds_spent,
        sampler=sampler,
        sampler_reason=reason,
    )


def _utc(local: datetime | None) -> datetime:
    assert local is not None, "a trial that was begun has a beginning"
    return local.astimezone()

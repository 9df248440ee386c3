"""What samplers are told of trials without a result: nothing that makes their points look good or bad, and no point twice."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from optuna.storages import JournalStorage

from tests.tuning.fakes import FakeTrials, points
from tuning.asking import Suggestion
from tuning.journal import KnownJournal
from tuning.loop import Loop, NothingFeasible
from tuning.samplers import make_sampler
from tuning.space import key
from tuning.spec import StudySpec
from tuning.study import Study, standing
from tuning.trials import Ended

SAMPLERS = ["gp", "tpe", "cmaes", "random", "evolution", "qmc", "bandit"]
BASE = {"training": {"steps": 30, "eval_interval": 10, "weight_decay": 0.5, "learning_rate": 0.01}}
SPACE = {
    "training.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "training.weight_decay": {"type": "float", "low": 0.0, "high": 1.0},
}


def new_study(sampler: str, journal: KnownJournal | None = None, **fields: Any) -> Study:
    chosen = {"base": BASE, "space": SPACE, "sampler": {"type": sampler, "startup_trials": 4, "population": 4}} | fields
    return Study(StudySpec.model_validate(chosen), JournalStorage(KnownJournal([]) if journal is None else journal))


def decay(job: Mapping[str, Any]) -> float:
    return float(job["training"]["weight_decay"])


def bowl(job: Mapping[str, Any], step: int = 30) -> dict[str, float]:
    """Falls with the weight decay, to the end of its range."""
    return {"eval_loss": abs(math.log10(float(job["training"]["learning_rate"])) + 2) + 2 - decay(job), "decay": decay(job)}


def run(study: Study, objective: Any) -> None:
    Loop(study, FakeTrials(objective), pulse=lambda: None, clock=lambda: 0.0).run()


@pytest.mark.parametrize("sampler", [*SAMPLERS, "grid"])
def test_no_point_is_tried_twice_whatever_became_of_it(sampler: str) -> None:
    space = {
        "training.warmup_steps": {"type": "int", "low": 1, "high": 4},
        "training.optimizer": {"type": "choice", "choices": ["adamw", "muon"]},
    }
    limits = [{"metric": "memory", "at_most": 1.0}]

    def objective(job: Mapping[str, Any], step: int) -> Mapping[str, float] | Ended:
        warmup = job["training"].get("warmup_steps", 1)
        if warmup == 2:
            return Ended(0, "failed", code="training_diverged", reason="the loss is no number")
        losses = {1: 0.1, 3: math.nan, 4: 0.2}
        return {"eval_loss": losses[warmup], "memory": 2.0 if job["training"].get("optimizer") == "muon" else 0.5}

    study = new_study(sampler, space=space, limits=limits, budget={"trials": 8})
    run(study, objective)
    assert len({key(point) for point in points(study)}) == 8
    assert study.standings() == {"failed": 4, "complete": 2, "infeasible": 2}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_where_trials_failed_changes_nothing_of_what_is_asked_next(sampler: str) -> None:
    """A failure may be the machine's: told as a bad value, or as a good one, it would draw the search away or to it."""

    told = KnownJournal([])
    run(new_study(sampler, told, budget={"trials": 12}), bowl)

    def asked(failed: Mapping[str, float]) -> Suggestion:
        study = new_study(sampler, KnownJournal([*told.read_logs(0)]))
        for _ in range(4):
            number = study.begin(Suggestion(dict(failed), sampler))
            study.report(number, 10, 0.0)
            study.fail(number, "training_diverged: the loss is no number")
        assert study.standings() == {"complete": 12, "failed": 4}
        return make_sampler(study.spec, study.space)(study.trials, len(study.trials), 0)

    corners = [
        {"training.learning_rate": rate, "training.weight_decay": decay} for rate in (1e-4, 1e-1) for decay in (0.0, 1.0)
    ]
    first, *others = [asked(corner).point for corner in corners]
    assert all(other == first for other in others)


@pytest.mark.parametrize("sampler", ["gp", "tpe", "cmaes", "evolution", "bandit"])
def test_what_is_infeasible_draws_no_search_to_it(sampler: str) -> None:
    """The lower the loss the more a trial is beyond the limit: who took these for good would end among them."""
    limits = [{"metric": "decay", "at_most": 0.4}]
    study = new_study(sampler, limits=limits, budget={"trials": 18})
    run(study, bowl)
    late = Counter(standing(trial) for trial in study.trials[10:])
    assert late["complete"] >= 4, late
    assert standing(study.best()[0]) == "complete"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_goes_on_where_no_trial_has_a_result_that_counts(sampler: str) -> None:
    losses = iter([*[math.nan] * 4, *[1.0] * 8])
    study = new_study(sampler, limits=[{"metric": "decay", "at_most": -1.0}], budget={"trials": 12})

    def objective(job: Mapping[str, Any], step: int) -> Mapping[str, float]:
        return bowl(job) | {"eval_loss": next(losses)} if step == 30 else bowl(job)

    with pytest.raises(NothingFeasible):
        run(study, objective)
    assert study.standings() == {"failed": 4, "infeasible": 8}

"""Trials of a study that are stopped early, and for which reasons."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from optuna.storages import JournalStorage

from tests.tuning.fakes import Objective, Recorder
from tests.tuning.test_loop import bowl, rate, run, spec
from tuning.journal import ReportedJournal
from tuning.study import Study, standing
from tuning.trials import Ended


@pytest.mark.parametrize("scheduler", ["asha", "hyperband"])
def test_poor_trials_are_stopped_and_told_as_pruned_with_what_they_measured(scheduler: str) -> None:
    chosen = spec(scheduler={"type": scheduler, "grace_steps": 10, "reduction_factor": 2}, budget={"trials": 16})
    study, trials = run(chosen)
    ends = Counter(standing(trial) for trial in study.trials)
    assert ends["pruned"] >= 4
    assert ends["complete"] >= 1
    pruned = [trial for trial in study.trials if standing(trial) == "pruned"]
    assert trials.stopped == [trial.number for trial in pruned]
    assert all(trial.intermediate_values for trial in pruned)
    assert any("not among the best" in trial.user_attrs["reason"] for trial in pruned)
    assert standing(study.best()[0]) == "complete"


@pytest.mark.parametrize("hopeless", ["failed", "infeasible"])
def test_no_trial_is_stopped_for_one_that_failed_or_is_beyond_a_limit(hopeless: str) -> None:
    def alluring(job: Mapping[str, Any], step: int) -> Mapping[str, float] | Ended:
        """Above 0.01 the best on the way, and no result at the end."""
        if rate(job) < 0.01:
            return bowl(job, step)
        if hopeless == "failed" and step == 30:
            return Ended(0, "failed", code="training_diverged", reason="the loss is no number")
        return {"eval_loss": 0.0, "memory": 1e3 * rate(job)}

    chosen = spec(
        scheduler={"type": "asha", "grace_steps": 10, "reduction_factor": 2},
        limits=[{"metric": "memory", "at_most": 10.0}],
        points=[{"training.learning_rate": each} for each in (0.011, 0.012, 0.013, 0.003, 0.009)],
        budget={"trials": 6},
    )
    study, _ = run(chosen, alluring)
    assert [standing(trial) for trial in study.trials] == ["complete", *[hopeless] * 3, "pruned", "complete"]


def improving(rates: list[float]) -> Objective:
    """Each learning rate better than those in ``rates``, where it is put."""

    def measure(job: Mapping[str, Any], step: int) -> Mapping[str, float]:
        if rate(job) not in rates:
            rates.append(rate(job))
        return {"eval_loss": 100.0 - rates.index(rate(job))}

    return measure


def test_of_trials_that_only_get_better_half_go_on() -> None:
    chosen = spec(scheduler={"type": "asha", "grace_steps": 10}, budget={"trials": 13})
    study, _ = run(chosen, improving([]))
    assert [trial.number for trial in study.trials if standing(trial) == "complete"] == [0, 2, 3, 5, 7, 9, 11]
    assert study.reason(12) == "6 of 12 trials went on from step 10 already"


def test_trials_of_earlier_studies_and_of_a_smaller_budget_take_nobodys_place() -> None:
    asha = {"type": "asha", "grace_steps": 10}
    earlier, _ = run(spec(budget={"trials": 10}), improving([]))
    recorder = Recorder()
    Study(spec(seed=1, scheduler=asha), JournalStorage(ReportedJournal(recorder.lines, recorder))).adopt("earlier", earlier)
    warm, _ = run(spec(seed=1, scheduler=asha, budget={"trials": 9}), lambda job, step: {"eval_loss": 1.0}, recorder=recorder)
    assert standing(warm.own[0]) == "complete", "the first of its own is the best of all"

    recorder = Recorder()
    few, _ = run(spec(scheduler=asha, budget={"trials": 8}), improving([]), recorder=recorder)
    assert few.standings() == {"complete": 8}, "eight trials fill no rung"
    more, _ = run(spec(scheduler=asha, budget={"trials": 20}), lambda job, step: {"eval_loss": 1.0}, recorder=recorder)
    assert standing(more.trials[8]) == "complete"
    assert more.standings()["pruned"] > 4


def test_brackets_judge_though_the_length_of_runs_is_searched() -> None:
    """Each length has rungs of its own, and all of a bracket are compared."""
    steps = {"type": "int", "low": 270, "high": 1000}
    chosen = spec(scheduler={"type": "hyperband"}, space={"training.steps": steps}, budget={"trials": 40})

    def measure(job: Mapping[str, Any], step: int) -> Mapping[str, float]:
        return {"eval_loss": abs(int(job["training"]["steps"]) - 600) + 1 / step}

    study, _ = run(chosen, measure, evaluations=[10, 40, 110, 300, 1000])
    lonely = [trial.number for trial in study.trials if "too few to compare" in study.reason(trial.number)]
    assert len(lonely) < 10
    assert study.standings()["complete"] > 2


def test_a_budget_of_steps_counts_what_stopped_trials_saved() -> None:
    asha = {"type": "asha", "grace_steps": 10, "reduction_factor": 2}
    whole, _ = run(spec(budget={"steps": 240}))
    saving, _ = run(spec(budget={"steps": 240}, scheduler=asha))
    assert len(whole.trials) == 8
    assert len(saving.trials) > 8
    assert sum(map(saving.steps_taken, saving.trials)) < 240 + 30


def test_a_driver_killed_after_any_line_counts_those_that_went_on_as_one_that_was_not() -> None:
    chosen = spec(scheduler={"type": "asha", "grace_steps": 10}, budget={"trials": 9})
    undisturbed, rates = Recorder(), list[float]()
    expected, _ = run(chosen, improving(rates), recorder=undisturbed)
    assert any("already" in expected.reason(trial.number) for trial in expected.trials)
    for lines in range(1, len(undisturbed.lines)):
        recorder = Recorder()
        recorder.lines = undisturbed.lines[:lines]
        resumed, _ = run(chosen, improving(rates), recorder=recorder)
        assert [standing(trial) for trial in resumed.trials] == [standing(trial) for trial in expected.trials]

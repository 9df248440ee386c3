"""A study from its first trial to its last, on trials that train nothing."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
from optuna.storages import JournalStorage

from data.errors import SourceError
from tests.tuning.fakes import FakeTrials, Killed, Objective, Recorder, points
from tuning.ask import NoValidPoint
from tuning.journal import KnownJournal, ReportedJournal
from tuning.loop import HOPELESS, Loop, MetricMissing, NothingFeasible, TrialsFailed
from tuning.spec import StudySpec
from tuning.study import Study, standing
from tuning.summary import summary, trial_view
from tuning.trials import Assignment, Ended
from workers.preparation import Stopped

RATE = {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}
BASE = {"training": {"steps": 30, "eval_interval": 10}}


def spec(**fields: Any) -> StudySpec:
    chosen = {"base": BASE, "space": {"training.learning_rate": RATE}, "sampler": "random", "budget": {"trials": 8}}
    return StudySpec.model_validate(chosen | fields)


def rate(job: Mapping[str, Any]) -> float:
    return float(job["training"]["learning_rate"])


def bowl(job: Mapping[str, Any], step: int) -> Mapping[str, float]:
    """Best at a learning rate of 0.01, and better with every step."""
    return {"eval_loss": abs(math.log10(rate(job)) + 2) + 1 / step, "seconds": 1.0, "memory": 1e3 * rate(job)}


def run(
    chosen: StudySpec, objective: Objective = bowl, recorder: Recorder | None = None, **fields: Any
) -> tuple[Study, FakeTrials]:
    recorder = recorder or Recorder()
    study = Study(chosen, JournalStorage(ReportedJournal(recorder.lines, recorder)))
    trials = FakeTrials(objective, **fields)
    Loop(study, trials, pulse=lambda: None, clock=lambda: 0.0).run()
    return study, trials


def test_a_study_tries_its_base_then_its_points_then_what_the_sampler_asks() -> None:
    known = [{"training.learning_rate": 0.01}, {"training.learning_rate": 0.02}]
    study, _ = run(spec(points=known))
    assert [point["training.learning_rate"] for point in points(study)][:3] == [4e-3, 0.01, 0.02]
    assert [trial.user_attrs["sampler"] for trial in study.trials] == ["base", "points", "points", *["random"] * 5]
    assert study.best()[0].number == 1


def test_every_trial_ends_with_its_values_and_its_curve() -> None:
    study, trials = run(spec())
    assert [standing(trial) for trial in study.trials] == ["complete"] * 8
    assert [assignment.number for assignment in trials.begun] == list(range(8))
    first = study.trials[0]
    assert first.intermediate_values == pytest.approx({10: 0.39794 + 0.1, 20: 0.39794 + 0.05}, abs=1e-4)
    assert first.user_attrs["metrics"]["seconds"] == 1.0


@pytest.mark.parametrize("sampler", ["auto", "gp", "tpe", "cmaes", "random", "evolution", "qmc", "bandit"])
def test_every_sampler_searches(sampler: str) -> None:
    study, _ = run(spec(sampler=sampler, budget={"trials": 12}))
    assert len({point["training.learning_rate"] for point in points(study)}) == 12
    assert study.best()[0].number > 0, "it finds better than base"


def test_a_grid_is_tried_whole_and_then_the_study_ends() -> None:
    space = {
        "model.num_hidden_layers": {"type": "int", "low": 2, "high": 6, "step": 2},
        "training.optimizer": {"type": "choice", "choices": ["adamw", "muon"]},
        "training.muon_momentum": {
            "type": "float",
            "low": 0.9,
            "high": 0.95,
            "step": 0.05,
            "when": {"training.optimizer": "muon"},
        },
    }
    study, _ = run(spec(space=space, sampler="grid", budget={"trials": 100}), lambda job, step: {"eval_loss": 1.0})
    assert len(study.trials) == 3 * (1 + 2)
    assert len({str(point) for point in points(study)}) == 9


def test_trials_run_beside_each_other() -> None:
    study, trials = run(spec(), slots=3)
    assert trials.most_at_once == 3
    assert study.standings() == {"complete": 8}
    assert len(trials.begun) == 8


def test_a_trial_beyond_a_limit_is_infeasible_and_never_the_best() -> None:
    chosen = spec(limits=[{"metric": "memory", "at_most": 5.0}], points=[{"training.learning_rate": 0.01}])
    study, _ = run(chosen)
    assert standing(study.trials[1]) == "infeasible"
    assert study.reason(1) == "beyond a limit: memory 10"
    assert study.best()[0].params["training.learning_rate"] <= 5e-3


def test_of_two_objectives_the_front_is_the_best() -> None:
    chosen = spec(objectives=[{}, {"metric": "memory"}], budget={"trials": 10})
    study, _ = run(chosen)
    rates = [trial.params["training.learning_rate"] for trial in study.trials]
    assert {trial.number for trial in study.best()} >= {rates.index(min(rates))}
    assert all(trial.params["training.learning_rate"] <= 0.0101 or trial.number == 0 for trial in study.best()[1:])


def test_a_study_that_begins_from_an_earlier_one_knows_its_trials_and_spends_its_own_budget() -> None:
    earlier, _ = run(spec(points=[{"training.learning_rate": 0.01}]))
    recorder = Recorder()
    later = Study(spec(seed=1), JournalStorage(ReportedJournal(recorder.lines, recorder)))
    later.adopt("earlier", earlier)
    later.adopt("earlier", earlier)
    assert len(later.trials) == 8
    study, trials = run(spec(seed=1), recorder=recorder)
    assert len(trials.begun) == 8
    assert len(study.own) == 8
    assert study.standings() == {"complete": 8}
    assert study.best()[0].number == 1, "what is best may be an earlier study's"
    assert all(point["training.learning_rate"] != 4e-3 for point in points(study)[8:]), "the base was tried before"


def test_trials_of_an_earlier_study_are_held_against_the_limits_of_this_one() -> None:
    earlier, _ = run(spec(points=[{"training.learning_rate": 0.01}], sampler="gp", budget={"trials": 12}))
    limited = spec(seed=1, sampler="gp", limits=[{"metric": "memory", "at_most": 5.0}], budget={"trials": 3})
    recorder = Recorder()
    later = Study(limited, JournalStorage(ReportedJournal(recorder.lines, recorder)))
    later.adopt("earlier", earlier)
    assert [standing(trial) for trial in later.trials[:2]] == ["complete", "infeasible"]
    study, _ = run(limited, recorder=recorder)
    assert sum(study.standings().values()) == 3
    assert rate_of(study) <= 5e-3
    unknown = Study(spec(limits=[{"metric": "f1", "at_least": 0.5}]), JournalStorage(KnownJournal([])))
    unknown.adopt("earlier", earlier)
    assert unknown.trials == []


def test_of_an_earlier_study_only_points_are_known_that_are_jobs_in_this_one() -> None:
    recorder = Recorder()
    earlier, _ = run(spec(points=[{"training.learning_rate": 0.01}]), recorder=recorder)
    constrained = spec(seed=1, constraints=["training.learning_rate < 0.005"], budget={"trials": 2})
    begun = Recorder()
    later = Study(constrained, JournalStorage(ReportedJournal(begun.lines, begun)))
    later.adopt("earlier", earlier)
    low = [point for point in points(earlier) if point["training.learning_rate"] < 0.005]
    assert points(later) == low
    assert 1 < len(low) < 8
    study, _ = run(constrained, recorder=begun)
    assert [view.number for view in summary(study).best] == [study.best()[0].number]
    known = Study(constrained, JournalStorage(KnownJournal(recorder.lines)))
    assert trial_view(known, known.trial(1)).total_steps == 30, "what was adopted once is shown, whatever it is"


def rate_of(study: Study) -> float:
    return float(study.best()[0].params["training.learning_rate"])


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_trial_that_may_be_spared_is_run_again_and_then_counts() -> None:
    failures = iter([Ended(0, "failed", code="worker_died", reason="killed", retry=True)])

    def once(job: Mapping[str, Any], step: int) -> Mapping[str, float] | Ended:
        return next(failures, None) or bowl(job, step)

    study, trials = run(spec(), once)
    assert [assignment.number for assignment in trials.begun] == [0, *range(8)]
    assert standing(study.trials[0]) == "complete"


def test_a_trial_that_fails_is_recorded_with_its_reason_and_the_search_goes_on() -> None:
    def hot(job: Mapping[str, Any], step: int) -> Mapping[str, float] | Ended:
        if rate(job) > 0.02:
            return Ended(0, "failed", code="training_diverged", reason="the loss is no number")
        return bowl(job, step)

    study, trials = run(spec(points=[{"training.learning_rate": 0.05}]), hot)
    assert standing(study.trials[1]) == "failed"
    assert study.trials[1].user_attrs["reason"] == "training_diverged: the loss is no number"
    assert len(trials.begun) == 8
    assert standing(study.best()[0]) == "complete"


def test_a_result_that_is_no_number_is_a_failure() -> None:
    study, _ = run(spec(), lambda job, step: {"eval_loss": math.nan if rate(job) == 4e-3 else 1.0})
    assert standing(study.trials[0]) == "failed"
    assert study.trials[0].user_attrs["reason"] == "no number: eval_loss nan"


def test_a_limited_figure_that_is_no_number_is_a_failure_and_other_such_figures_are_left_out() -> None:
    figures = {"eval_loss": 1.0, "memory": 1.0, "grad_norm": math.inf}
    study, _ = run(
        spec(limits=[{"metric": "memory", "at_most": 5.0}]),
        lambda job, step: figures | {"memory": math.nan if rate(job) == 4e-3 else 1.0},
    )
    assert (standing(study.trials[0]), study.reason(0)) == ("failed", "no number: memory nan")
    assert study.trials[1].user_attrs["metrics"] == {"eval_loss": 1.0, "memory": 1.0}


def test_what_is_no_number_on_the_way_is_no_part_of_a_curve_and_stops_nothing() -> None:
    def gap(job: Mapping[str, Any], step: int) -> Mapping[str, float]:
        return {"eval_loss": math.nan} if step == 10 else bowl(job, step)

    study, trials = run(spec(scheduler={"type": "asha", "grace_steps": 10, "reduction_factor": 2}), gap)
    assert {step for trial in study.trials for step in trial.intermediate_values} == {20}
    assert set(trials.stopped) < set(range(8))


def test_a_study_whose_every_trial_fails_ends_soon_with_the_reason() -> None:
    recorder = Recorder()
    with pytest.raises(TrialsFailed, match=f"all of {HOPELESS} trials failed; .*out of memory"):
        run(spec(), lambda job, step: Ended(0, "failed", reason="out of memory"), recorder)


def test_a_metric_that_is_never_reported_ends_the_study_with_those_that_are() -> None:
    chosen, recorder = spec(objectives=[{"metric": "f1"}]), Recorder()
    with pytest.raises(MetricMissing, match=r"no trial reports 'f1'; they report eval_loss, memory, seconds") as caught:
        run(chosen, recorder=recorder)
    assert caught.value.pointer == "/objectives/0/metric"
    study = Study(chosen, JournalStorage(KnownJournal(recorder.lines)))
    assert (study.standings(), study.reason(0)) == ({"failed": 1}, "metric_missing: it did not report 'f1'")


def test_a_metric_that_one_trial_did_not_report_fails_that_trial_alone() -> None:
    ended = iter(range(8))

    def sometimes(job: Mapping[str, Any], step: int) -> Mapping[str, float]:
        figures = bowl(job, step)
        return {**figures, "f1": 0.5} if step < 30 or next(ended) != 3 else figures

    study, _ = run(spec(objectives=[{"metric": "f1"}]), sometimes)
    assert study.standings() == {"complete": 7, "failed": 1}
    assert study.reason(3) == "metric_missing: it did not report 'f1'"


def test_a_study_without_a_feasible_trial_says_so() -> None:
    with pytest.raises(NothingFeasible, match=r"8 trials ended, and every one is beyond a limit \(memory\)"):
        run(spec(limits=[{"metric": "memory", "at_most": 0.0}]))


@pytest.mark.parametrize(
    ("constraint", "says"),
    [
        ("training.learning_rate < 0", "training.learning_rate < 0 does not hold"),
        (f"training.learning_rate * 1{'0' * 400} > 0", "cannot be told: int too large"),
        ("data_pipeline.stages[0].min_line_words > 1", "cannot be told: nothing is at data_pipeline.stages.0.min_line_words"),
    ],
)
def test_a_space_without_a_job_ends_the_study_with_the_reason(constraint: str, says: str) -> None:
    with pytest.raises(NoValidPoint, match=says):
        run(spec(constraints=[constraint]))


def test_points_that_are_no_job_are_never_begun() -> None:
    study, _ = run(spec(constraints=["training.learning_rate < 0.002"], points=[{"training.learning_rate": 0.01}]))
    assert len(study.trials) == 8
    assert all(point["training.learning_rate"] < 0.002 for point in points(study))


class Unprepared(FakeTrials):
    """There are no data for a learning rate above 0.02, as where the path of a source is searched over."""

    def begin(self, assignment: Assignment) -> None:
        if rate(assignment.job) > 0.02:
            raise SourceError("missing.txt does not exist")
        super().begin(assignment)


def test_a_trial_whose_data_cannot_be_prepared_fails_and_the_search_goes_on() -> None:
    study = Study(spec(points=[{"training.learning_rate": 0.05}]), JournalStorage(KnownJournal([])))
    Loop(study, Unprepared(bowl, slots=2), pulse=lambda: None, clock=lambda: 0.0).run()
    assert (standing(study.trials[1]), study.reason(1)) == ("failed", "source_unreadable: missing.txt does not exist")
    assert sum(study.standings().values()) == 8
    assert study.standings()["complete"] == sum(point["training.learning_rate"] <= 0.02 for point in points(study)) > 1


def test_a_study_that_has_data_for_no_trial_ends_soon_with_the_reason() -> None:
    nowhere = spec(space={"training.learning_rate": RATE | {"low": 0.03}})
    study = Study(nowhere, JournalStorage(KnownJournal([])))
    with pytest.raises(TrialsFailed, match=f"all of {HOPELESS} trials failed; .*missing.txt does not exist"):
        Loop(study, Unprepared(bowl), pulse=lambda: None, clock=lambda: 0.0).run()


# -- time --------------------------------------------------------------------------------------------------------------


class Hours:
    """A clock on which an hour passes with every evaluation; on ``stop_at`` the driver is told to end."""

    def __init__(self, stop_at: float = math.inf) -> None:
        self.now, self._stop_at = 0.0, stop_at

    def __call__(self) -> float:
        return self.now

    def measure(self, job: Mapping[str, Any], step: int) -> Mapping[str, float]:
        self.now += 3600
        return bowl(job, step)

    def pulse(self) -> None:
        if self.now >= self._stop_at:
            raise Stopped("paused")


def test_a_study_knows_all_of_its_time_when_it_ends_and_when_it_is_paused() -> None:
    hours, recorder = Hours(stop_at=2 * 3600), Recorder()
    chosen = spec(budget={"seconds": 5 * 3600})
    study = Study(chosen, JournalStorage(ReportedJournal(recorder.lines, recorder)))
    with pytest.raises(Stopped):
        Loop(study, FakeTrials(hours.measure), hours.pulse, hours).run()
    assert Study(chosen, JournalStorage(KnownJournal(recorder.lines))).seconds_spent == 2 * 3600
    hours = Hours()
    study = Study(chosen, JournalStorage(ReportedJournal(recorder.lines, recorder)))
    Loop(study, FakeTrials(hours.measure), hours.pulse, hours).run()
    assert len(study.trials) == 1, "three hours are in the budget, and three were left"
    assert study.seconds_spent == 5 * 3600


def test_a_killed_driver_loses_no_more_time_than_since_its_last_turn() -> None:
    hours, recorder, chosen = Hours(), Recorder(), spec(budget={"seconds": 1e6})

    def dies(job: Mapping[str, Any], step: int) -> Mapping[str, float]:
        if hours.now == 2 * 3600:
            recorder.kill_after = len(recorder.lines)
        return hours.measure(job, step)

    study = Study(chosen, JournalStorage(ReportedJournal(recorder.lines, recorder)))
    with pytest.raises(Killed):
        Loop(study, FakeTrials(dies), hours.pulse, hours).run()
    assert Study(chosen, JournalStorage(KnownJournal(recorder.lines))).seconds_spent == 2 * 3600


# -- killed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["gp", "tpe", "cmaes", "evolution", "qmc", "bandit"])
def test_a_driver_killed_after_any_line_of_its_journal_decides_as_one_that_was_not(sampler: str) -> None:
    chosen = spec(
        sampler={"type": sampler, "startup_trials": 2, "population": 2},
        scheduler={"type": "asha", "grace_steps": 10, "reduction_factor": 2},
        budget={"trials": 4 if sampler in ("gp", "bandit") else 7},  # a fit at each ask takes its time
    )
    undisturbed = Recorder()
    expected, _ = run(chosen, recorder=undisturbed)
    for lines in range(1, len(undisturbed.lines)):
        recorder = Recorder()
        recorder.lines = undisturbed.lines[:lines]
        resumed, trials = run(chosen, recorder=recorder)
        assert points(resumed) == points(expected)
        assert [standing(trial) for trial in resumed.trials] == [standing(trial) for trial in expected.trials]
        assert [trial.values for trial in resumed.trials] == [trial.values for trial in expected.trials]
        assert len({assignment.number for assignment in trials.begun}) == len(trials.begun)

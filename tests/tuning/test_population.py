"""Population-based training: who takes over from whom, on tables and on trials that train nothing."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from optuna.storages import JournalStorage
from pydantic import ValidationError

from tests.tuning.fake_population import Disk, FakePopulation, progress
from tests.tuning.fakes import Killed, Recorder, points
from tuning.journal import KnownJournal, ReportedJournal
from tuning.loop import TrialsFailed
from tuning.population import Member, exploits, explore
from tuning.population_loop import PopulationLoop
from tuning.spec import PopulationScheduler, StudySpec
from tuning.study import Study, born_at, standing
from tuning.summary import summary, trial_view

RATE = {"type": "float", "low": 1e-4, "high": 1.0, "log": True}
BASE = {"training": {"steps": 60, "eval_interval": 10}}
PBT = {"type": "pbt", "population": 4, "interval": 10}


def spec(**fields: Any) -> StudySpec:
    return StudySpec.model_validate({"base": BASE, "space": {"training.learning_rate": RATE}, "scheduler": PBT} | fields)


# -- decisions ---------------------------------------------------------------------------------------------------------


def members(*values: float | None, failed: Sequence[int] = ()) -> list[Member]:
    """One a place, trial ``10 + place``; None measured nothing at step 20."""
    return [
        Member(place, 10 + place, {10: 1.0} if value is None else {10: 1.0, 20: value}, place in failed)
        for place, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("population", "quantile", "minimize", "taken_over", "parents"),
    [
        (members(1, 2, 3, 4), 0.25, True, [3], {10}),
        (members(1, 2, 3, 4), 0.25, False, [0], {13}),
        (members(4, 1, 2, 3, 8, 5, 6, 7), 0.25, True, [4, 7], {11, 12}),
        (members(2, 1), 0.1, True, [0], {11}),
        (members(1, None, 2, 3), 0.25, True, [1], {10}),
        (members(1, None, None, 3, failed=[1, 2]), 0.25, True, [1, 2], {10}),
        (members(None, None, None, 3, failed=[0, 1, 2]), 0.5, True, [0, 1, 2], {13}),
        (members(None, None, failed=[0]), 0.5, True, [], set()),
        (members(1.0), 0.5, True, [], set()),
        (members(1, 1, 1, 1), 0.25, True, [3], {10}),
    ],
)
def test_the_lowest_quantile_takes_over_from_the_top(
    population: list[Member], quantile: float, minimize: bool, taken_over: list[int], parents: set[int]
) -> None:
    scheduler = PopulationScheduler(interval=10, quantile=quantile)
    for seed in range(5):
        found = exploits(population, 20, scheduler, minimize, seed)
        assert [each.place for each in found] == taken_over
        assert [each.number for each in found] == [10 + place for place in taken_over]
        assert {each.parent for each in found} <= parents
        assert found == exploits(population[::-1], 20, scheduler, minimize, seed), "whatever order they are in"


def test_each_of_the_top_is_taken_over_from() -> None:
    scheduler = PopulationScheduler(interval=10, quantile=0.5)
    drawn = {each.parent for seed in range(20) for each in exploits(members(1, 2, 3, 4), 20, scheduler, True, seed)}
    assert drawn == {10, 11}


def unbegun(**fields: Any) -> Study:
    return Study(spec(**fields), JournalStorage(KnownJournal([])))


def explored(parameter: dict[str, Any], value: Any, name: str = "training.learning_rate", resample: float = 0.0) -> set[Any]:
    scheduler = PopulationScheduler(interval=10, resample_probability=resample)
    study = unbegun(space={name: parameter})
    return {explore(study, {name: value}, scheduler, number, 20)[name] for number in range(40)}


def test_a_number_is_multiplied_a_choice_moves_by_one_and_both_stay_in_their_range() -> None:
    assert explored(RATE, 0.1) == {0.1 * 0.8, 0.1 * 1.2}
    assert explored(RATE, 1.0) == {0.8, 1.0}
    stepped = {"type": "float", "low": 0.0, "high": 0.5, "step": 0.1}
    assert explored(stepped, 0.2, "training.weight_decay") == {0.1, 0.3}
    assert explored({"type": "int", "low": 1, "high": 9}, 2, "training.warmup_steps") == {1, 3}
    assert explored({"type": "int", "low": 1, "high": 90}, 50, "training.warmup_steps") == {40, 60}
    schedules = {"type": "choice", "choices": ["cosine", "wsd", "constant"]}
    assert explored(schedules, "wsd", "training.learning_rate_schedule") == {"cosine", "constant"}
    assert explored(schedules, "constant", "training.learning_rate_schedule") == {"wsd", "constant"}


def test_some_values_are_drawn_anew() -> None:
    drawn = explored(RATE, 0.1, resample=0.25)
    assert {value for value in drawn if not math.isclose(value, 0.08) and not math.isclose(value, 0.12)}
    assert len(explored(RATE, 0.1, resample=1.0)) == 40


def test_a_point_that_is_no_job_is_drawn_again_and_else_the_parents_stays() -> None:
    scheduler = PopulationScheduler(interval=10, resample_probability=0.0)
    lower = unbegun(constraints=["training.learning_rate < 0.1"])
    never = unbegun(constraints=["training.learning_rate == 0.1"])
    for number in range(20):
        point = {"training.learning_rate": 0.1}
        assert explore(lower, point, scheduler, number, 20) == {"training.learning_rate": pytest.approx(0.08)}
        assert explore(never, point, scheduler, number, 20) == point


def test_a_parameter_that_begins_to_apply_is_drawn() -> None:
    decay = {"type": "float", "low": 0.1, "high": 0.5, "when": {"training.learning_rate_schedule": "wsd"}}
    schedule = {"type": "choice", "choices": ["cosine", "wsd"]}
    study = unbegun(space={"training.learning_rate_schedule": schedule, "training.decay_fraction": decay})
    scheduler = PopulationScheduler(interval=10, resample_probability=0.0)
    found = [explore(study, {"training.learning_rate_schedule": "cosine"}, scheduler, number, 20) for number in range(20)]
    kinds = {point["training.learning_rate_schedule"]: point.keys() for point in found}
    assert kinds == {"cosine": {"training.learning_rate_schedule"}, "wsd": study.space.parameters.keys()}


@pytest.mark.parametrize(
    ("interval", "evaluations", "steps", "found"),
    [(10, 10, 40, [10, 20, 30]), (15, 10, 50, [20, 30]), (3, 10, 40, [10, 20, 30]), (40, 10, 40, []), (35, 30, 50, [])],
)
def test_members_are_compared_at_the_first_evaluation_at_or_after_a_multiple(
    interval: int, evaluations: int, steps: int, found: list[int]
) -> None:
    training = StudySpec.model_validate({"base": {"training": {"eval_interval": evaluations}}, "space": {"training.eps": RATE}})
    assert PopulationScheduler(interval=interval).exploit_steps(training.base.training, steps) == found


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        (
            {"space": {"model.num_hidden_layers": {"type": "int", "low": 1, "high": 2}}},
            ("space", "model.num_hidden_layers"),
            "cannot change in the middle of a run",
        ),
        (
            {"space": {"training.global_batch_size": {"type": "choice", "choices": [8, 16]}}},
            ("space", "training.global_batch_size"),
            "training.weight_decay",
        ),
        (
            {"scheduler": {"type": "pbt", "interval": 60}},
            "scheduler.interval",
            "no evaluation .every 10 steps. lies between step 60",
        ),
        ({"budget": {"trials": 3}}, "budget.trials", "a population of 4 needs as many trials"),
        ({"trials": "jobs"}, "trials", "train inside the study"),
        ({"base": BASE | {"gpu_config": {"nodes": 2}}}, "trials", "on one worker each"),
        ({"sampler": "tpe"}, "sampler", "before tpe knows anything"),
        ({"objectives": [{}, {"metric": "seconds"}]}, "scheduler", "pbt compares trials by one objective"),
        ({"base": {"training": {"steps": 60}}}, "base.training.eval_interval", "set training.eval_interval"),
    ],
)
def test_what_no_population_can_do_is_refused_with_its_field(given: dict[str, Any], field: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says) as caught:
        spec(**given)
    assert caught.value.errors()[0]["ctx"]["error"].fields[0] == field


# -- a population that trains nothing ----------------------------------------------------------------------------------


def run(
    chosen: StudySpec, recorder: Recorder | None = None, disk: Disk | None = None, **fields: Any
) -> tuple[Study, FakePopulation]:
    recorder = recorder or Recorder()
    study = Study(chosen, JournalStorage(ReportedJournal(recorder.lines, recorder)))
    trials = FakePopulation(disk or Disk(), **fields)
    PopulationLoop(study, trials, pulse=lambda: None, clock=lambda: 0.0).run()
    return study, trials


def decisions(study: Study) -> list[Any]:
    kept = ("place", "parent", "at_step", "sampler", "reason")
    return [
        (
            standing(trial),
            trial.params,
            trial.values,
            dict(trial.intermediate_values),
            {name: trial.user_attrs.get(name) for name in kept},
        )
        for trial in study.trials
    ]


def test_every_member_trains_to_the_end_and_the_worst_go_on_from_the_best() -> None:
    study, trials = run(spec())
    assert study.standings() == {"complete": 4, "pruned": 5}
    complete = [trial for trial in study.trials if standing(trial) == "complete"]
    assert sorted(trial.user_attrs["place"] for trial in complete) == [0, 1, 2, 3]
    assert [born_at(trial) for trial in study.trials] == [0, 0, 0, 0, 10, 20, 30, 40, 50]
    for child in study.trials[4:]:
        at, parent = born_at(child), study.trial(child.user_attrs["parent"])
        replaced = next(
            trial for trial in study.trials if trial.user_attrs["place"] == child.user_attrs["place"] and trial.last_step == at
        )
        assert replaced.user_attrs["reason"] == f"exploited trial {parent.number} at step {at}"
        peers = [trial.intermediate_values[at] for trial in study.trials if at in trial.intermediate_values]
        assert parent.intermediate_values[at] == min(peers)
        assert replaced.intermediate_values[at] == max(peers)
        assert all(step > at for step in child.intermediate_values), "its values go on from there"
        rate = child.params["training.learning_rate"]
        expected = parent.intermediate_values[at] - sum(progress(rate, step) for step in range(at, at + 10))
        assert (child.intermediate_values.get(at + 10) or child.values[0]) == pytest.approx(expected)
    assert (4, 10) in trials.begun


def test_a_schedule_beats_every_fixed_rate() -> None:
    chosen = spec(scheduler=PBT | {"population": 8}, budget={"trials": 100})
    study, _ = run(chosen)
    rates = [10 ** (-4 + 4 * i / 400) for i in range(401)]
    fixed = min(8.0 - sum(progress(rate, step) for step in range(60)) for rate in rates)
    assert study.best()[0].values[0] < fixed
    rates_of_best = [point["training.learning_rate"] for _, point in study.lineage(study.best()[0].number)]
    assert rates_of_best[-1] < rates_of_best[0] / 3


@pytest.mark.parametrize("slots", [2, 4, 9])
def test_it_decides_the_same_however_many_train_at_once(slots: int) -> None:
    assert decisions(run(spec(), slots=slots)[0]) == decisions(run(spec())[0])


@pytest.mark.parametrize("fields", [{}, {"slots": 3}, {"fails": {1: 20, 5: 30}}])
def test_a_driver_killed_after_any_line_of_its_journal_decides_as_one_that_was_not(fields: dict[str, Any]) -> None:
    undisturbed = Recorder()
    expected = decisions(run(spec(), undisturbed, **fields)[0])
    for lines in range(1, len(undisturbed.lines)):
        recorder, disk = Recorder(), Disk()
        recorder.kill_after = lines
        with pytest.raises(Killed):
            run(spec(), recorder, disk, **fields)
        recorder.kill_after = None
        resumed, _ = run(spec(), recorder, disk, **fields)
        assert decisions(resumed) == expected, f"killed after line {lines}"


def test_a_member_that_fails_is_replaced_at_the_next_exploit() -> None:
    study, _ = run(spec(), fails={1: 20})
    assert standing(study.trial(1)) == "failed"
    assert "diverged" in study.trial(1).user_attrs["reason"]
    assert (1, 20) in [(trial.user_attrs["place"], born_at(trial)) for trial in study.trials]
    assert study.standings()["complete"] == 4


def test_a_population_that_fails_whole_says_why() -> None:
    with pytest.raises(TrialsFailed, match=r"4 trials failed, and no member is left; .*the loss is no number"):
        run(spec(), fails=dict.fromkeys(range(4), 10))


def test_a_trial_that_cannot_begin_from_its_parent_fails_and_the_next_takes_its_place() -> None:
    study, trials = run(spec(), unforkable=[4])
    assert study.reason(4).startswith("fork_failed: the checkpoint of trial")
    assert 4 not in [number for number, _ in trials.begun]
    assert study.standings()["complete"] == 4


def test_a_budget_that_is_spent_ends_the_exploits_and_members_train_on() -> None:
    study, _ = run(spec(budget={"trials": 6}))
    assert [born_at(trial) for trial in study.trials] == [0, 0, 0, 0, 10, 20]
    assert study.standings() == {"complete": 4, "pruned": 2}
    study, _ = run(spec(budget={"steps": 90}))
    assert [born_at(trial) for trial in study.trials] == [0, 0, 0, 0, 10, 20], "40 steps a round"


def test_the_members_of_a_small_space_are_as_many_as_its_points() -> None:
    schedules = {"training.learning_rate_schedule": {"type": "choice", "choices": ["cosine", "constant"]}}
    study, _ = run(spec(space=schedules))
    assert study.standings()["complete"] == 2
    assert len(points(study)) == 2 + 5


def test_a_trials_view_has_its_parent_and_what_its_weights_were_trained_with() -> None:
    study, _ = run(spec())
    child = study.trial(5)
    view = trial_view(study, child)
    assert (view.parent, view.at_step, view.sampler) == (child.user_attrs["parent"], 20, "pbt")
    assert view.lineage[0][0] == 0
    assert view.lineage[-1] == (20, view.point)
    assert [step for step, _ in view.lineage] == sorted(step for step, _ in view.lineage)
    assert trial_view(study, study.trial(0)).lineage == [(0, study.point(0))]
    shown = summary(study)
    assert shown.steps == 4 * 60, "no step is trained twice"
    assert shown.steps_saved == 0
    assert (shown.sampler, shown.sampler_reason) == ("qmc", "a population begins spread evenly")

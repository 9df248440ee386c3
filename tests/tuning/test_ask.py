"""Which point a study tries next."""

from typing import Any

import pytest
from optuna.storages import JournalStorage

from tests.tuning.fakes import FakeTrials, points
from tuning.ask import NoValidPoint, next_point
from tuning.draws import at_quantile
from tuning.journal import KnownJournal
from tuning.loop import Loop
from tuning.parameters import IntParameter
from tuning.space import JobSpace, key
from tuning.spec import StudySpec
from tuning.study import Study

RATE = {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}
DECAY = {"type": "float", "low": 0.0, "high": 0.5, "step": 0.1}


def new_study(**fields: Any) -> Study:
    given = {"base": {"training": {"steps": 30, "eval_interval": 10}}, "sampler": "random", "budget": {"trials": 5}}
    return Study(StudySpec.model_validate(given | fields), JournalStorage(KnownJournal([])))


def run(study: Study) -> list[dict[str, Any]]:
    Loop(study, FakeTrials(lambda job, step: {"eval_loss": 1.0}), pulse=lambda: None, clock=lambda: 0.0).run()
    return points(study)


def test_a_point_that_names_an_integer_where_a_range_has_fractions_is_tried_once() -> None:
    space = {"training.weight_decay": DECAY | {"step": None}, "training.learning_rate": RATE}
    tried = run(new_study(space=space, points=[{"training.weight_decay": 0}]))
    assert len({key(point) for point in tried}) == 5
    assert [point["training.weight_decay"] for point in tried].count(0.0) == 1


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "qmc", "grid"])
def test_every_step_of_a_range_is_tried_once_as_it_was_written(sampler: str) -> None:
    study = new_study(space={"training.weight_decay": DECAY}, sampler=sampler, budget={"trials": 9})
    assert sorted(point["training.weight_decay"] for point in run(study)) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert sorted(trial.params["training.weight_decay"] for trial in study.trials) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


# -- points that are no job --------------------------------------------------------------------------------------------

STEPS = {
    "training.warmup_steps": {"type": "int", "low": 1, "high": 4},
    "training.weight_decay": {"type": "float", "low": 0.0, "high": 0.2, "step": 0.1},
}


@pytest.mark.parametrize("sampler", ["auto", "tpe", "random", "qmc", "grid", "bandit"])
def test_a_study_ends_well_when_all_that_its_constraints_allow_was_tried(sampler: str) -> None:
    constraints = ["training.warmup_steps * training.weight_decay > 0.25"]
    study = new_study(space=STEPS, constraints=constraints, sampler=sampler, budget={"trials": 20})
    tried = sorted((point["training.warmup_steps"], point["training.weight_decay"]) for point in run(study))
    assert tried == [(2, 0.2), (3, 0.1), (3, 0.2), (4, 0.1), (4, 0.2)]


def test_a_grid_passes_over_what_is_no_job_and_stays_a_grid() -> None:
    given = {"space": STEPS, "constraints": ["training.warmup_steps != 2"], "sampler": "grid", "budget": {"trials": 20}}
    study = new_study(**given)
    assert len(run(study)) == 9
    assert {trial.user_attrs["sampler"] for trial in study.trials[1:]} == {"grid"}
    assert points(study) == run(new_study(**given))
    assert points(study) != run(new_study(**given, seed=1))


@pytest.mark.parametrize("sampler", ["random", "grid"])
@pytest.mark.parametrize(("constraint", "begun"), [("training.steps == 20", 0), ("training.weight_decay == 0.1", 1)])
def test_a_search_that_finds_nothing_but_base_says_so(sampler: str, constraint: str, begun: int) -> None:
    base = {"training": {"steps": 30, "weight_decay": 0.1, "warmup_steps": 1}}
    both = [constraint, "training.warmup_steps == 1", "training.label_smoothing == 0"]
    space = STEPS | {"training.label_smoothing": DECAY}
    study = new_study(base=base, space=space, constraints=both, sampler=sampler)
    with pytest.raises(NoValidPoint, match="does not hold"):
        run(study)
    assert len(study.trials) == begun


# -- spaces with conditions --------------------------------------------------------------------------------------------


def conditional(high: int, step: int) -> dict[str, Any]:
    return {
        "training.warmup_steps": {"type": "int", "low": 1, "high": high, "step": step},
        "training.weight_decay": DECAY | {"step": None, "when": {"training.warmup_steps": 4}},
        "training.learning_rate": RATE,
    }


@pytest.mark.parametrize("sampler", ["gp", {"type": "bandit", "arms": ["gp"]}])
def test_a_process_takes_its_branches_from_the_steps_of_the_space(sampler: Any) -> None:
    tried = run(new_study(space=conditional(6, 3), sampler=sampler, budget={"trials": 12}))
    assert {point["training.warmup_steps"] for point in tried} == {1, 4}


@pytest.mark.parametrize("sampler", ["gp", {"type": "bandit", "arms": ["gp"]}])
def test_a_process_leaves_a_space_of_too_many_branches_to_tpe(sampler: Any) -> None:
    study = new_study(space=conditional(20, 1), sampler=sampler, budget={"trials": 25})
    assert max(point["training.warmup_steps"] for point in run(study)) > 10
    assert {trial.user_attrs["sampler"] for trial in study.trials[1:]} == {"tpe"}


def test_the_last_step_of_a_range_is_as_likely_as_every_other() -> None:
    parameter = IntParameter(type="int", low=1, high=6, step=3)
    assert [at_quantile(parameter, u / 4) for u in range(4)] == [1, 1, 4, 4]


# -- what an ask costs -------------------------------------------------------------------------------------------------


def test_an_ask_looks_at_what_is_new_since_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    study = new_study(space={"training.learning_rate": RATE}, points=[{"training.learning_rate": 1e-3}], sampler="qmc")
    for _ in range(20):
        study.begin(next_point(study))
    looked_at: dict[str, list[Any]] = {"decode": [], "job": []}

    def note(name: str) -> None:
        method = getattr(JobSpace, name)

        def noted(self: JobSpace, given: Any) -> Any:
            looked_at[name].append(given)
            return method(self, given)

        monkeypatch.setattr(JobSpace, name, noted)

    note("decode")
    note("job")
    suggestion = next_point(study)
    assert looked_at == {"decode": [study.trials[-1].params], "job": [suggestion.point]}

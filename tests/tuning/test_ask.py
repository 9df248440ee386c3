"""Which point a study tries next."""

from typing import Any

import pytest
from optuna.storages import JournalStorage

from tests.tuning.fakes import FakeTrials, points
from tuning.journal import KnownJournal
from tuning.loop import Loop
from tuning.space import key
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

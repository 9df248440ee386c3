"""Evolution takes what it did not make for its first generation."""

from collections.abc import Mapping
from typing import Any

from optuna.storages import JournalStorage

from tests.tuning.fakes import FakeTrials
from tuning.journal import KnownJournal
from tuning.loop import Loop
from tuning.space import Point
from tuning.spec import StudySpec
from tuning.study import Study

FIELDS = ("training.learning_rate", "training.weight_decay", "training.label_smoothing")


def worth(job: Mapping[str, Any], step: int) -> Mapping[str, float]:
    return {"eval_loss": sum(float(job["training"][field.removeprefix("training.")]) for field in FIELDS)}


def study(trials: int, points: list[Point]) -> Study:
    made = {
        "base": {"training": {"steps": 30, "eval_interval": 10}},
        "space": {field: {"type": "float", "low": 0.001, "high": 0.5} for field in FIELDS},
        "points": points,
        "sampler": {"type": "evolution", "population": 4},
        "budget": {"trials": trials},
    }
    return Study(StudySpec.model_validate(made), JournalStorage(KnownJournal([])))


def run(chosen: Study) -> None:
    Loop(chosen, FakeTrials(worth), pulse=lambda: None, clock=lambda: 0.0).run()


KNOWN = [dict(zip(FIELDS, [0.01 * n, 0.02 * n, 0.03 * n], strict=True)) for n in range(1, 7)]


def inherited(chosen: Study, first: int) -> list[bool]:
    """Of the values of the points that were asked for from trial ``first`` on."""
    best = KNOWN[:4]
    asked = [chosen.point(trial.number) for trial in chosen.trials[first:]]
    return [any(abs(point[field] - each[field]) < 1e-9 for each in best) for point in asked for field in FIELDS]


def test_children_of_known_points_have_their_values() -> None:
    chosen = study(11, KNOWN)
    run(chosen)
    assert any(inherited(chosen, 7)), "what is drawn has none"


def test_children_of_an_earlier_studys_points_have_their_values() -> None:
    earlier = study(7, KNOWN)
    run(earlier)
    chosen = study(4, [])
    chosen.adopt("earlier", earlier)
    run(chosen)
    assert any(inherited(chosen, 7)), "what is drawn has none"

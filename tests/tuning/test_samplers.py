"""Which sampler ``auto`` is, and why."""

from typing import Any

import pytest

from tuning.samplers import choose
from tuning.space import JobSpace
from tuning.spec import StudySpec

RATE = {"training.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}}
BRANCHES = {
    **RATE,
    "training.optimizer": {"type": "choice", "choices": ["adamw", "muon"]},
    "training.muon_momentum": {"type": "float", "low": 0.9, "high": 0.99, "when": {"training.optimizer": "muon"}},
}
FRONT = [{}, {"metric": "seconds"}]


@pytest.mark.parametrize(
    ("fields", "sampler", "says"),
    [
        ({"space": RATE}, "gp", "a Gaussian process learns most from a trial"),
        ({"space": BRANCHES}, "gp", "for each of the 2 branches"),
        ({"space": RATE, "objectives": FRONT}, "gp", "for each objective"),
        ({"space": BRANCHES, "objectives": FRONT}, "tpe", "only the parameters that apply everywhere"),
        ({"space": BRANCHES, "objectives": FRONT, "budget": {"trials": 5}}, "qmc", "5 trials are too few"),
    ],
)
def test_auto_says_what_it_is_and_why(fields: dict[str, Any], sampler: str, says: str) -> None:
    study = StudySpec.model_validate(fields)
    chosen, reason = choose(study, JobSpace(study))
    assert chosen == sampler
    assert says in reason

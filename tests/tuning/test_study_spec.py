"""What a study may be: every mistake is named with the field that it is in."""

from typing import Any

import pytest
from pydantic import ValidationError

from data.spec_base import Misfit
from tuning.spec import StudySpec

RATE = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
OPTIMIZER = {"type": "choice", "choices": ["adamw", "muon"]}


def study(**fields: Any) -> StudySpec:
    return StudySpec.model_validate({"space": {"training.learning_rate": RATE}, **fields})


def space(**parameters: dict[str, Any]) -> dict[str, Any]:
    return {"space": {f"training.{name}": parameter for name, parameter in parameters.items()}}


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        (space(learning_rat=RATE), "space", "no field 'learning_rat' in training; did you mean learning_rate?"),
        ({"space": {"hidden_size": RATE}}, "space", "did you mean model.hidden_size?"),
        ({"space": {"training.betas.2": RATE}}, "space", "no field '2' in training.betas"),
        ({"space": {}}, "space", "at least 1 item"),
        (space(learning_rate=RATE | {"low": 1.0}), "space", "low 1 is more than high 0.01"),
        (space(learning_rate=RATE | {"low": 0.0}), "space", "log needs a positive low"),
        (space(learning_rate=RATE | {"step": 1e-4}), "space", "log and step exclude each other"),
        (
            space(learning_rate={"type": "float", "low": -1, "high": 1}),
            "space",
            "cannot be -1.0: Input should be greater than 0",
        ),
        (space(optimizer={"type": "choice", "choices": ["adamw", "adam"]}), "space", "cannot be 'adam'"),
        (space(optimizer={"type": "choice", "choices": ["adamw", "adamw"]}), "space", "is given twice"),
        (space(weight_decay={"type": "choice", "choices": [0.1, 1, 1.0]}), "space", "1.0 is given twice"),
        (space(warmup_steps={"type": "int", "low": 1, "high": 9, "log": True, "step": 2}), "space", "exclude each other"),
        (
            space(learning_rate=RATE | {"when": {"training.optimizer": "muon"}}),
            "space",
            "training.optimizer is not in the space",
        ),
        (
            space(optimizer=OPTIMIZER, learning_rate=RATE | {"when": {"training.optimizer": "adam"}}),
            "space",
            "'adam' is no value of training.optimizer",
        ),
        (
            space(
                optimizer=OPTIMIZER | {"when": {"training.learning_rate": 1e-3}},
                learning_rate=RATE | {"when": {"training.optimizer": "muon"}},
            ),
            "space",
            "depend on each other in a circle",
        ),
        (
            {
                "space": {
                    "training.betas": {"type": "choice", "choices": [[0.9, 0.99]]},
                    "training.betas.0": RATE,
                }
            },
            "space",
            "lies inside training.betas",
        ),
        ({"constraints": ["import os"]}, "constraints", "is no expression"),
        ({"points": [{"training.weight_decay": 0.1}]}, "points", "training.weight_decay is not in the space"),
        ({"points": [{"training.learning_rate": 1.0}]}, "points", "1.0 is no value of training.learning_rate"),
        ({"budget": {"trials": 0}}, "budget", "greater than or equal to 1"),
        ({"budget": {}}, "budget", "give trials, steps or seconds"),
        ({"sampler": "gpu"}, "sampler", "'auto', 'gp'"),
        ({"sampler": "grid"}, "space", "grid needs a step or choices for training.learning_rate"),
        (
            {
                "sampler": "grid",
                "space": {
                    "training.learning_rate": {"type": "float", "low": 1e-5, "high": 0.1, "step": 1e-5},
                    "training.warmup_steps": {"type": "int", "low": 0, "high": 10},
                },
            },
            "space",
            "a grid has at most 100,000 points, and this one more",
        ),
        (
            {
                "sampler": "grid",
                "space": {"training.learning_rate": {"type": "float", "low": 1e-5, "high": 0.1, "step": 1e-320}},
            },
            "space",
            "a grid has at most 100,000 points, and this one more",
        ),
        (
            {
                "space": {"training.warmup_steps": {"type": "int", "low": 0, "high": 1}},
                "points": [{"training.warmup_steps": True}],
            },
            "points",
            "True is no value of training.warmup_steps",
        ),
        ({"sampler": "cmaes", "objectives": [{}, {"metric": "seconds"}]}, "sampler", "one objective"),
        ({"scheduler": {"type": "asha"}}, "base", "set training.eval_interval"),
        (
            {"scheduler": {"type": "asha"}, "objectives": [{"metric": "train_loss"}]},
            "objectives",
            "asha compares trials on their way, and train_loss is known only at the end",
        ),
        ({"scheduler": {"type": "hyperband"}, "objectives": [{"metric": "seconds"}]}, "objectives", "only at the end"),
        ({"scheduler": {"type": "pbt", "interval": 5}, "objectives": [{"metric": "memory_bytes"}]}, "objectives", "only at"),
        ({"limits": [{"metric": "peak_memory_bytes"}]}, "limits", "give at_most, at_least or both"),
        ({"base": {"training": {"steps": 0}}}, "base", "greater than or equal to 1"),
        (
            {"trials": "inside", "base": {"gpu_config": {"nodes": 2}}},
            "trials",
            "a trial inside the study has one worker, not 2",
        ),
    ],
)
def test_a_mistake_is_named_with_its_field(given: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        study(**given)
    errors = caught.value.errors()
    assert any(says in str(error["msg"]) for error in errors), errors
    places = [str(part) for error in errors for part in error["loc"][:1]]
    misfits = [error["ctx"]["error"] for error in errors if error["type"] == "value_error"]
    places += [str(part).split(".")[0] for each in misfits if isinstance(each, Misfit) for part in _first(each)]
    assert field in places


def _first(misfit: Misfit) -> list[str]:
    return [name if isinstance(name, str) else str(name[0]) for name in misfit.fields]


def test_a_sampler_may_be_given_by_its_name() -> None:
    assert study(sampler="tpe") == study(sampler={"type": "tpe"})


WORKERS = {"type": "int", "low": 1, "high": 4}


@pytest.mark.parametrize(
    ("given", "jobs"),
    [
        ({}, False),
        ({"trials": "jobs"}, True),
        ({"base": {"gpu_config": {"nodes": 2}}}, True),
        ({"base": {"gpu_config": {"nodes": 2}, "parallel_strategy": {"data_parallel": 1}}}, False),
        ({"space": {"parallel_strategy.data_parallel": WORKERS}}, True),
        ({"space": {"gpu_config.nodes": WORKERS}}, True),
        ({"space": {"gpu_config.nodes": WORKERS}, "trials": "inside"}, False),
    ],
)
def test_trials_are_jobs_where_one_may_take_several_workers(given: dict[str, Any], jobs: bool) -> None:
    assert study(**given).trials_are_jobs is jobs


def test_a_study_is_stored_as_its_base_was_given() -> None:
    given = {"model": {"hidden_size": 96}, "training": {"steps": 20}}
    assert study(base=given).model_dump(mode="json")["base"] == given
    assert study(base=given).base.model.hidden_size == 96


def test_a_study_comes_back_from_its_json() -> None:
    first = study(
        base={"training": {"eval_interval": 5}},
        points=[{"training.learning_rate": 1e-3}],
        scheduler={"type": "asha"},
        constraints=["training.learning_rate < 0.1"],
    )
    assert StudySpec.model_validate_json(first.model_dump_json()) == first

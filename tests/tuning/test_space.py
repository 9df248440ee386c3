"""From points to jobs and back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tuning.draws import combinations
from tuning.parameters import ChoiceParameter, IntParameter, Parameter, grid_size
from tuning.space import JobSpace, Space
from tuning.spec import StudySpec

BOTH = ["adamw", "muon"]
SPACE = {
    "training.muon_momentum": {"type": "float", "low": 0.8, "high": 0.99, "when": {"training.optimizer": "muon"}},
    "training.optimizer": {"type": "choice", "choices": BOTH},
    "training.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "training.final_betas": {
        "type": "choice",
        "choices": [None, [0.9, 0.99]],
        "when": {"training.optimizer": ["adamw", "muon"]},
    },
    "model.num_hidden_layers": {"type": "int", "low": 2, "high": 7, "step": 2},
    "training.betas.0": {"type": "float", "low": 0.8, "high": 0.95, "step": 0.05},
}


def space(**fields: Any) -> JobSpace:
    return JobSpace(StudySpec.model_validate({"space": SPACE, **fields}))


def test_optuna_sees_parents_before_what_depends_on_them() -> None:
    assert space().distributions == {
        "training.optimizer": CategoricalDistribution(["adamw", "muon"]),
        "training.learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "model.num_hidden_layers": IntDistribution(2, 6, step=2),
        "training.betas.0": FloatDistribution(0.8, 0.95, step=0.05),
        "training.muon_momentum": FloatDistribution(0.8, 0.99),
        "training.final_betas": CategoricalDistribution(["null", "[0.9, 0.99]"]),
    }


def test_the_base_is_a_point_moved_into_the_space_where_it_lies_outside() -> None:
    assert space(base={"training": {"learning_rate": 0.5}}).base_point == {
        "training.optimizer": "adamw",
        "training.learning_rate": 1e-2,
        "model.num_hidden_layers": 4,
        "training.betas.0": pytest.approx(0.9),
        "training.final_betas": None,
    }


def test_a_parameter_is_there_only_where_it_applies() -> None:
    assert "training.muon_momentum" not in space().complete({"training.optimizer": "adamw"})
    assert space().complete({"training.optimizer": "muon"})["training.muon_momentum"] == 0.95


def test_one_is_not_true() -> None:
    choice: Any = {"type": "choice", "choices": [1, True]}
    parent, child = (
        ChoiceParameter.model_validate(choice),
        ChoiceParameter.model_validate(choice).model_copy(update={"when": {"seed": 1}}),
    )
    made = Space({"seed": parent, "training.steps": child})
    assert made.applies("training.steps", {"seed": 1.0})
    assert not made.applies("training.steps", {"seed": True})


STEPPED = st.builds(
    lambda low, steps: IntParameter(type="int", low=low, high=low + steps), st.integers(-3, 3), st.integers(0, 3)
)


@given(st.lists(st.tuples(STEPPED, st.integers(0, 3), st.integers(-3, 3)), min_size=1, max_size=5))
def test_a_grid_has_as_many_points_as_there_are_combinations(given: list[tuple[IntParameter, int, int]]) -> None:
    parameters: dict[str, Parameter] = {}
    for number, (parameter, parent, value) in enumerate(given):
        when = {f"p{parent}": value} if parent < number else {}
        parameters[f"p{number}"] = parameter.model_copy(update={"when": when})
    points = list(combinations(Space(parameters), list(parameters)))
    assert grid_size(parameters, most=10**6) == len(points)
    assert (grid_size(parameters, most=7) > 7) == (len(points) > 7)


def test_a_parameter_of_one_that_is_not_there_is_not_there() -> None:
    nested = SPACE | {
        "training.moments_dtype": {"type": "choice", "choices": ["fp32", "bf16"], "when": {"training.muon_momentum": 0.95}}
    }
    made = space(space=nested)
    assert "training.moments_dtype" in made.complete({"training.optimizer": "muon"})
    assert "training.moments_dtype" not in made.complete({"training.optimizer": "adamw"})


def test_a_point_is_put_into_the_job_as_it_was_given() -> None:
    made = space(base={"training": {"steps": 20}})
    point = made.complete({"training.optimizer": "muon", "training.final_betas": [0.9, 0.99], "training.betas.0": 0.8})
    job = made.job(point)
    assert (job.training.optimizer, job.training.final_betas, job.training.betas) == ("muon", (0.9, 0.99), (0.8, 0.95))
    assert made.document({"training.learning_rate": 1e-3}) == {"training": {"steps": 20, "learning_rate": 1e-3}}


@pytest.mark.parametrize(
    ("fields", "point", "says"),
    [
        ({"constraints": ["model.num_hidden_layers > 4"]}, {}, "model.num_hidden_layers > 4 does not hold"),
        ({"constraints": ["training.tokens > 4"]}, {}, "training.tokens > 4: cannot be told"),
        ({"constraints": ["training.steps == 20"]}, {}, "training.steps == 20 does not hold"),
        (
            {"base": {"model": {"num_hidden_layers": 6, "attention_pattern": "layered", "local_layers": 5}}},
            {"model.num_hidden_layers": 2},
            "local_layers",
        ),
        ({"base": {"parallel_strategy": {"tensor_parallel": 2}}}, {}, "/parallel_strategy/tensor_parallel"),
    ],
)
def test_a_point_that_is_no_job_says_why(fields: dict[str, Any], point: dict[str, Any], says: str) -> None:
    made = space(**fields)
    with pytest.raises(ValueError, match=says):
        made.job(made.complete(point))


WEIGHT_DECAY = {"type": "float", "low": 0.0, "high": 1.0}


@pytest.mark.parametrize("written", [0, 1, 0.25])
def test_a_number_is_of_its_range_s_type_however_it_was_written(written: float) -> None:
    made = space(space={"training.weight_decay": WEIGHT_DECAY}, points=[{"training.weight_decay": written}])
    (value,) = made.complete({"training.weight_decay": written}).values()
    assert (value, type(value)) == (written, float)


@pytest.mark.parametrize(
    ("choices", "decay", "found"),
    [([0.1, 0], 0, 0), ([0.1, 0], 0.0, 0), ([0.1, 1.0], 1, 1.0), ([0.1, 0.2], 0, 0.1)],
)
def test_base_is_found_among_choices_however_its_number_is_written(choices: list[Any], decay: float, found: float) -> None:
    parameter = {"type": "choice", "choices": choices}
    made = space(space={"training.weight_decay": parameter}, base={"training": {"weight_decay": decay}})
    assert made.base_point == {"training.weight_decay": found}


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_base_is_found_among_blocks_that_leave_out_their_defaults(nodes: int) -> None:
    blocks = [{}, {"nodes": 2}, {"nodes": 4, "gpus_per_node": 1}]
    made = space(space={"gpu_config": {"type": "choice", "choices": blocks}}, base={"gpu_config": {"nodes": nodes}})
    assert made.base_point == {"gpu_config": {1: {}, 2: {"nodes": 2}, 3: {}}[nodes]}


def test_what_optuna_adds_up_otherwise_is_the_value_that_was_written() -> None:
    steps = WEIGHT_DECAY | {"step": 0.1}
    made = space(
        space={
            "training.weight_decay": steps,
            "training.label_smoothing": WEIGHT_DECAY | {"high": 0.5, "when": {"training.weight_decay": [0.3, 0.6, 0.7]}},
        }
    )
    params = {"training.weight_decay": 0.1 + 2 * 0.1}
    assert params["training.weight_decay"] != 0.3
    assert made.decode(params) == {"training.weight_decay": 0.3}
    assert made.applies("training.label_smoothing", made.decode(params))


VALUES = {
    "training.optimizer": st.sampled_from(["adamw", "muon"]),
    "training.learning_rate": st.floats(1e-4, 1e-2),
    "training.muon_momentum": st.floats(0.8, 0.99),
    "training.final_betas": st.sampled_from([None, [0.9, 0.99]]),
}


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_a_point_survives_the_way_through_optuna(known: dict[str, Any]) -> None:
    made = space()
    point = made.complete(known)
    params = made.encode(point)
    assert all(made.distributions[path]._contains(made.distributions[path].to_internal_repr(v)) for path, v in params.items())
    assert made.decode(params) == point

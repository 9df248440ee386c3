"""What the benches of training assert, on losses made up."""

from dataclasses import asdict

import pytest

from tests.bench.patterns import ALLOWED, RUNS, verdicts
from tests.bench.train import RECIPE, ratio, require_agreement, spec

LOSSES = {name: [9.0, 8.5, 8.0, 7.5, 7.0] for name in ("bf16", "fp32", "hf_fp32", "hf_autocast", "hf_compiled")}


def with_last(name: str, loss: float) -> dict[str, list[float]]:
    return LOSSES | {name: [*LOSSES[name][:-1], loss]}


def test_losses_that_agree_are_told_apart_by_their_largest_difference() -> None:
    assert require_agreement(LOSSES) == {"fp32": 0.0, "bf16": 0.0}
    assert require_agreement(with_last("hf_compiled", 7.01))["bf16"] == pytest.approx(0.01)


@pytest.mark.parametrize(("name", "loss"), [("hf_fp32", 7.001), ("fp32", 7.001), ("hf_autocast", 7.03), ("hf_compiled", 7.03)])
def test_a_contender_whose_loss_differs_ends_the_race(name: str, loss: float) -> None:
    with pytest.raises(AssertionError, match="here"):
        require_agreement(with_last(name, loss))


def test_a_race_in_which_nothing_is_learned_ends() -> None:
    with pytest.raises(AssertionError, match="nothing is learned"):
        require_agreement(dict.fromkeys(LOSSES, [9.0] * 5))


def test_a_ratio_is_of_steps_of_one_round() -> None:
    assert ratio({"bf16": [1.0, 2.0, 4.0], "peer": [2.0, 4.0, 8.8]}, "bf16_vs_peer") == 2.0


def test_both_sides_have_one_recipe() -> None:
    training = spec("fp32").training
    assert {name: getattr(training, name) for name in asdict(RECIPE)} == asdict(RECIPE)


def test_a_pattern_may_be_worse_by_what_seeds_make_of_it() -> None:
    steady = {run: [5.0, 5.001, 4.999] for run in RUNS}
    assert verdicts(steady | {"sliding_fp32": [5.1, 5.101, 5.099]})["sliding_fp32"] == {
        "above_full_fp32": 0.1,
        "allowed": ALLOWED,
    }
    scattered = verdicts({run: [5.0, 5.1, 4.9] for run in RUNS})
    assert all(each == {"above_full_fp32": 0.0, "allowed": 0.2} for each in scattered.values())

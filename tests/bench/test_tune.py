"""The arithmetic of the tuning bench, the functions and the table that it searches, and each pure part in small."""

import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.bench.peers import optuna_samplers
from tests.bench.tune import AT_LEAST, AT_MOST, PARTS, main, missed
from tests.bench.tune_asks import growth_kib, known, manta_seconds, optuna_seconds
from tests.bench.tune_fidelity import Epoch, anytime, areas, manta, ray
from tests.bench.tune_functions import FUNCTIONS, conditional
from tests.bench.tune_overhead import Spent, Turns, overhead_ms, spent
from tests.bench.tune_replay import BUDGET_STEPS, PEERS, SEARCHED, StepsSpent, Table, TableTrials, lowest, study_of, wins
from tests.bench.tune_search import Search, regret, regret_ratio
from tests.bench.tune_table import INTERVAL, SPACE, STEPS, base, key, load, points
from tuning.space import Point, Space
from tuning.trials import Assignment, Ended, Measured

SMALL = 12
"""Trials: more than a sampler begins with."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_least_where_it_says_and_nowhere_less(name: str) -> None:
    function = FUNCTIONS[name]
    assert function.regret(function.best) == pytest.approx(0.0, abs=1e-6)
    lowest = optuna_samplers.lowest(function.regret, function.distributions_at, "random", 0, 200)
    assert lowest > 0
    assert optuna_samplers.lowest(function.regret, function.distributions_at, "random", 0, 1) > lowest


def test_each_optimizer_of_the_conditional_function_has_parameters_and_a_best_of_its_own() -> None:
    function = FUNCTIONS["conditional"]
    of = {name: list(function.distributions_at({"optimizer": name}))[3:] for name in ("adam", "sgd", "muon")}
    assert of == {
        "adam": ["decay", "one_minus_beta2", "warmup"],
        "sgd": ["momentum", "decay"],
        "muon": ["momentum", "ns_steps"],
    }
    muon: Point = {"optimizer": "muon", "lr": 10**-1.7, "depth": 6, "momentum": 0.9, "ns_steps": 5}
    assert conditional(muon) == pytest.approx(0.05)
    sgd: Point = {"optimizer": "sgd", "lr": 10**-0.7, "depth": 5, "momentum": 0.9, "decay": 1e-4}
    assert conditional(sgd) == pytest.approx(0.15, abs=0.001)


@pytest.mark.parametrize("name", ["hartmann3", "hartmann6"])
def test_a_lower_fidelity_is_off_by_a_tenth_of_every_terms_weight(name: str) -> None:
    function = FUNCTIONS[name]
    low, high = (function.value(function.best, fidelity) for fidelity in (0.0, 1.0))
    assert 0 < low - high < 0.4
    assert function.value(function.best, 0.5) == pytest.approx((low + high) / 2)


def test_a_regret_below_the_floor_is_the_floor() -> None:
    assert regret_ratio({"manta": 0.2, "tpe": 0.4, "gp": 0.1}) == pytest.approx(2.0)
    assert regret_ratio({"manta": 1e-9, "tpe": 0.4, "gp": 1e-5}) == 1.0
    assert regret_ratio({"manta": 0.1, "tpe": 0.4, "gp": 1e-5}) == pytest.approx(100.0)


def test_an_equal_loss_is_half_a_win() -> None:
    assert wins([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 5.0]) == 0.625
    assert wins([1.0], [math.inf]) == 1.0


def test_the_incumbent_is_the_best_last_value_or_the_best_of_the_deepest() -> None:
    epochs = [
        Epoch(0, 1, {"x": 5.0}, 9.0),
        Epoch(1, 1, {"x": 1.0}, 10.0),
        Epoch(1, 2, {"x": 1.0}, 8.0),
        Epoch(2, 1, {"x": 2.0}, 7.0),
        Epoch(0, 2, {"x": 5.0}, 7.5),
        Epoch(2, 2, {"x": 2.0}, 7.8),
    ]
    curves = anytime(epochs, lambda point: float(point["x"]))
    assert curves["last"] == [5.0, 5.0, 1.0, 2.0, 2.0, 5.0]
    assert curves["deep"] == [5.0, 5.0, 1.0, 1.0, 5.0, 5.0]


def test_what_is_on_the_wrong_side_of_its_mark_is_named() -> None:
    good: dict[str, Any] = {**AT_LEAST, **AT_MOST}
    assert missed(good) == {}
    assert missed({}) == {}, "what was not measured"
    for name in AT_LEAST:
        assert missed({**good, name: 0.0}) == {name: 0.0}
    for name in AT_MOST:
        assert missed({**good, name: 99.0}) == {name: 99.0}


def test_a_part_that_is_not_there_is_refused() -> None:
    with pytest.raises(SystemExit, match="no part regrets; there are regret, multifidelity"):
        main(["regrets"])


# -- the table -------------------------------------------------------------------------------------------------------------


def test_every_point_of_the_table_is_measured_to_its_end() -> None:
    curves = load()
    assert curves.keys() == {key(point) for point in points()}
    assert len(curves) >= AT_LEAST["table_runs"]
    assert {len(curve) for curve in curves.values()} == {STEPS // INTERVAL}
    assert all(math.isfinite(loss) for curve in curves.values() for loss in curve)


def test_the_best_run_of_the_table_does_not_lie_at_an_end_of_the_learning_rates() -> None:
    best = min(points(), key=lambda point: Table().curve(point)[STEPS])
    rates = SPACE["training.learning_rate"]
    assert rates[0] < best["training.learning_rate"] < rates[-1]


def test_a_point_stands_for_the_nearest_run() -> None:
    table = Table()
    at = dict(zip(SPACE, [0.008, 0.1, 0.2, "muon", 2, 8], strict=True))
    exact = table.curve(at)
    assert list(exact) == list(range(INTERVAL, STEPS + 1, INTERVAL))
    assert list(exact.values()) == load()[key(at)]
    near = at | {"training.learning_rate": 0.0112, "training.warmup_fraction": 0.06}
    assert table.curve(near) == exact
    assert table.curve(near | {"training.learning_rate": 0.0114}) != exact
    assert table.curve(near | {"training.weight_decay": 0.0}) != exact
    assert SEARCHED.keys() == SPACE.keys()


def test_the_table_trains_as_trials_do_and_no_further_than_it_may() -> None:
    trials, job = TableTrials(Table(), STEPS + 2 * INTERVAL), base("tales.jsonl")
    trials.begin(Assignment(0, job))
    said = [trials.news(0.0)[0] for _ in range(STEPS // INTERVAL)]
    assert [each.step for each in said if isinstance(each, Measured)] == list(range(INTERVAL, STEPS, INTERVAL))
    assert isinstance(said[-1], Ended)
    assert trials.best == said[-1].metrics["eval_loss"] < 6.0
    assert trials.free == 1
    trials.begin(Assignment(1, job))
    trials.news(0.0)
    trials.answer(1, go_on=False)
    assert trials.news(0.0) == [Ended(1, "stopped")]
    trials.begin(Assignment(2, job))
    trials.news(0.0)
    with pytest.raises(StepsSpent):
        trials.news(0.0)


@pytest.mark.parametrize("who", ["manta", *PEERS])
def test_everybody_finds_something_in_the_table_for_the_same_steps_again(who: str) -> None:
    few = 4 * STEPS
    found = lowest((who, 0, few))
    assert found == lowest((who, 0, few))
    assert min(curve[-1] for curve in load().values()) <= found < 5.0
    assert lowest((who, 0, STEPS - INTERVAL)) == math.inf, "no trial came to its end"


def test_a_peers_stopped_trials_leave_it_steps_for_more() -> None:
    seen: Counter[str] = Counter()
    for pruner in optuna_samplers.PRUNERS:

        def curve(point: Point, pruner: str = pruner) -> dict[int, float]:
            seen[pruner] += 1
            return Table().curve(point)

        distributions = Space(study_of(0).space).distributions
        optuna_samplers.lowest_of_steps(curve, lambda params: distributions, "random", pruner, 0, BUDGET_STEPS)  # noqa: B023
    assert seen["none"] == BUDGET_STEPS // STEPS + 1
    assert seen["halving"] > seen["none"] < seen["median"]


# -- each part in small ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["branin", "conditional"])
@pytest.mark.parametrize("who", ["manta", *optuna_samplers.SAMPLERS])
def test_everybody_comes_nearer_to_the_minimum(name: str, who: str) -> None:
    assert 0 <= regret((name, who, 0, SMALL)) < regret((name, who, 0, 1))


@pytest.mark.parametrize("side", [manta, ray])
def test_both_sides_take_as_many_epochs_and_stop_some_trials(side: Any) -> None:
    epochs = list(side("hartmann3", 0, 100))
    assert len(epochs) == 100
    deepest = {number: max(each.epoch for each in epochs if each.trial == number) for number in {each.trial for each in epochs}}
    assert sorted(deepest) == list(range(len(deepest)))
    assert len(deepest) > 100 / 27 + 1
    assert min(deepest.values()) < 27
    assert all(area > 0 for area in areas(("hartmann3", side.__name__, 0, 40)).values())


def test_stopped_trials_of_a_search_are_pruned_with_what_they_measured() -> None:
    search = Search(FUNCTIONS["hartmann3"].parameters, 0, {"steps": 100}, total_steps=27)
    for value in (3.0, 2.0, 1.0, 9.0):
        number, _ = search.begin()
        goes_on = search.measured(number, 1, value)
    assert not goes_on
    *_, best, worst = search._study.trials
    assert (best.state.name, worst.state.name) == ("RUNNING", "PRUNED")
    assert worst.intermediate_values == {1: 9.0}


def test_the_log_of_a_worker_tells_when_its_steps_were_done(tmp_path: Path) -> None:
    start = datetime.fromisoformat("2026-11-25T10:00:00.000+00:00").timestamp()
    lines = [
        f"2026-11-25T10:00:0{number}.{at} INFO {said}"
        for number in (0, 1, 2)
        for at, said in (
            ("100+00:00", f"tuning.worker: trial {number} begins"),
            ("150+00:00", "workers.loop: step 1 of 6: loss 5.8, 90 tokens/s"),
            ("160+00:00", "workers.loop: step 2 of 6: loss 5.7, 90 tokens/s"),
            ("900+00:00", "workers.loop: held-out loss 5.2 after 6 steps"),
        )
    ]
    (tmp_path / "log").write_text("\n".join(lines))
    chosen = {number: start + number + 0.09 for number in range(3)}
    found = spent(chosen, tmp_path / "log")
    assert len(found) == 2
    assert [each.first for each in found] == pytest.approx([0.06, 0.06], abs=1e-5)
    assert [each.second for each in found] == pytest.approx([0.01, 0.01], abs=1e-5)
    assert overhead_ms(found) == pytest.approx(50.0, abs=0.01)
    assert overhead_ms([Spent(0.3, 0.1), Spent(0.5, 0.1), Spent(9.0, 0.2)]) == pytest.approx(400.0)
    with pytest.raises(AssertionError, match="has trials"):
        spent(chosen | {3: start}, tmp_path / "log")


def test_two_sides_train_a_trial_each_until_one_has_no_more() -> None:
    turns, order = Turns(), []

    def side(who: str, trials: int) -> None:
        for _ in range(trials):
            turns.take(who)
            order.append(who)
        turns.leave(who)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(side, ("ray", "manta"), (2, 4)))
    assert order == ["manta", "ray", "manta", "ray", "manta", "manta"]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_both_sides_are_asked_the_same_number_of_times(name: str) -> None:
    assert len(list(manta_seconds(name, 2, 20))) == len(list(optuna_seconds(name, 2, 20))) == 2
    assert growth_kib(name, known(20).get_trials(deepcopy=False), 1, 2) < 10_000


def test_the_live_study_is_a_job_over_the_tables_points(tmp_path: Path) -> None:
    from service.spec import TuneJob
    from tests.bench.tune_live import foretold, study

    given = {name: value for name, value in study(tmp_path / "tales.jsonl").items() if name != "kind"}
    spec = TuneJob.model_validate({"kind": "tune", **given})
    choices = {path: list(parameter.choices) for path, parameter in spec.space.items() if parameter.type == "choice"}
    assert choices == SPACE
    trials = foretold(study(tmp_path / "tales.jsonl") | {"budget": {"steps": 2 * STEPS}})
    assert 0 < Table().rank(trials.best) < 1
    assert trials.begun >= 2
    assert PARTS.keys() == {"regret", "multifidelity", "real", "live", "overhead", "asks"}
    assert os.environ["OMP_NUM_THREADS"] == "1"

"""Which trials stop: rungs that the budget fills, and who goes on past one."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.scheduler import Course, Curve, bracket, grace_steps, judged_at, rungs, should_stop, value_at
from tuning.spec import AshaScheduler, Budget, HyperbandScheduler

ASHA = AshaScheduler(grace_steps=10, reduction_factor=3)
PLENTY = Budget(seconds=1e9)


def stops(
    curves: Sequence[Curve], number: int, scheduler: AshaScheduler | HyperbandScheduler = ASHA, minimize: bool = True
) -> bool:
    """All others have stopped where their curves end."""
    courses = [
        Course(curve, *judged_at(scheduler, PLENTY, each, 270), stopped=each != number) for each, curve in enumerate(curves)
    ]
    return should_stop(scheduler, courses, number, max(curves[number]), minimize) is not None


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Budget(seconds=60), [10, 30, 90]),
        (Budget(trials=81), [10, 30, 90]),
        (Budget(trials=80), [10, 30]),
        (Budget(trials=9), [10]),
        (Budget(trials=8), []),
        (Budget(steps=3240), [10, 30, 90]),  # 81 trials of about 4 x 10 steps
        (Budget(steps=3239), [10, 30]),
        (Budget(trials=9, steps=10**6), [10]),
    ],
)
def test_there_are_no_more_rungs_than_the_budget_fills(budget: Budget, expected: list[int]) -> None:
    assert rungs(ASHA, budget, 270) == expected


def test_a_rung_at_the_end_of_the_run_saves_nothing() -> None:
    assert rungs(ASHA, PLENTY, 90) == [10, 30]
    assert rungs(ASHA, PLENTY, 10) == []
    assert grace_steps(AshaScheduler(reduction_factor=3), 270) == 10
    assert grace_steps(AshaScheduler(reduction_factor=3), 5) == 1


def test_a_trial_comes_to_a_rung_with_its_first_measurement_there_or_later() -> None:
    assert value_at({8: 3.0, 16: 2.0, 24: 1.0}, 10) == 2.0
    assert value_at({8: 3.0}, 10) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], True),  # nothing to compare with
        ([2.0, 1.0], True),
        ([3.0, 2.0, 1.0], False),  # the best of three
        ([1.0, 2.0, 1.5], True),
        ([3.0, 4.0, 5.0, 6.0, 7.0, 2.0], False),
        ([1.0, 4.0, 5.0, 6.0, 7.0, 2.0], False),  # two of six
        ([1.0, 1.5, 5.0, 6.0, 7.0, 2.0], True),
        ([1.0, 1.0, 1.0], False),  # as good as the best
    ],
)
def test_of_those_that_came_to_a_rung_the_best_third_goes_on(values: list[float], expected: bool) -> None:
    assert stops([{10: value} for value in values], len(values) - 1) is expected
    assert stops([{10: -value} for value in values], len(values) - 1, minimize=False) is expected


def test_a_trial_is_held_against_others_at_the_same_rung_and_once() -> None:
    others: list[Curve] = [{10: 1.0, 30: 1.0}, {10: 1.0, 30: 1.0}, {10: 1.0}]
    assert stops([*others, {10: 5.0}], 3)
    assert not stops([*others, {10: 0.5, 20: 9.0}], 3)  # between rungs
    assert stops([*others, {10: 0.5, 30: 2.0}], 3)
    assert not stops([*others, {10: 0.5, 30: 0.9}], 3)


def test_where_measurements_are_far_between_the_last_rung_counts() -> None:
    others: list[Curve] = [{100: 1.0}, {100: 2.0}]
    assert stops([*others, {100: 1.5}], 2)
    assert not stops([*others, {100: 0.5}], 2)
    assert not stops([*others, {100: 0.5, 200: 9.0}], 2)  # no rung is left


def test_of_a_search_that_only_gets_better_every_other_trial_goes_on() -> None:
    courses: list[Course] = []
    for number in range(40):
        judged = Course({10: -float(number)}, [10, 30], 0, stopped=False)
        reason = should_stop(ASHA, [*courses, judged], number, 10, minimize=True)
        courses.append(judged._replace(stopped=reason is not None))
    went_on = [number for number, course in enumerate(courses) if not course.stopped]
    assert went_on == [2, 3, *range(4, 40, 2)]  # the first two had too few to compare with


@pytest.mark.parametrize(
    ("others", "stops"),
    [
        ([Course({10: 3.0}, [10, 30], 0, False), Course({10: 2.0}, [10, 30], 0, True)], False),
        ([Course({10: 3.0}, [10, 30], 0, False), Course({10: 2.0}, [10, 30], 0, False)], True),  # neither has measured since
        (
            [Course({10: 3.0, 30: 3.0}, [10, 30], 0, True), Course({10: 2.0, 30: 2.0}, [10, 30], 0, True)],
            True,
        ),  # at a later rung
        ([Course({35: 3.0}, [10, 30], 0, True), Course({35: 2.0}, [10, 30], 0, True)], False),  # came to both at once
        (
            [Course({10: 3.0, 30: 3.0}, (), None, False), Course({10: 2.0, 30: 2.0}, (), None, False)],
            False,
        ),  # nobody judged them
        ([Course({10: 3.0, 30: 3.0}, [30], 0, False), Course({10: 2.0, 30: 2.0}, [30], 0, False)], False),  # nor at 10
    ],
)
def test_those_that_went_on_from_a_rung_are_counted_where_they_were_judged(others: list[Course], stops: bool) -> None:
    best = Course({10: 1.0}, [10, 30], 0, False)
    reason = should_stop(ASHA, [*others, best], 2, 10, minimize=True)
    assert reason == ("2 of 3 trials went on from step 10 already" if stops else None)


def test_brackets_count_their_own() -> None:
    scheduler = HyperbandScheduler(grace_steps=10, reduction_factor=3)
    elsewhere = [Course({10: 3.0, 30: 3.0, 60: 3.0}, [30, 90], 1, False)] * 6
    here = [Course({10: 9.0, 30: 9.0}, [10, 30, 90], 0, False)] * 2
    best = Course({10: 1.0}, [10, 30, 90], 0, False)
    assert (
        should_stop(scheduler, [*elsewhere, best], 6, 10, minimize=True)
        == "one of the first 2 trials at step 10: too few to compare"
    )
    assert (
        should_stop(scheduler, [*elsewhere, *here, best], 8, 10, minimize=True) == "2 of 3 trials went on from step 10 already"
    )


def test_a_bracket_holds_trials_of_any_length() -> None:
    scheduler = HyperbandScheduler(reduction_factor=3)
    (rungs, mine), (longer, other) = (judged_at(scheduler, PLENTY, 0, total) for total in (270, 810))
    assert (rungs, longer, mine, other) == ([10, 30, 90], [30, 90, 270], 0, 0)
    long = [Course({30: value}, longer, other, stopped=True) for value in (3.0, 4.0)]
    assert should_stop(scheduler, [*long, Course({30: 2.0}, rungs[1:], mine, False)], 2, 30, minimize=True) is None


def test_hyperband_compares_within_a_bracket_and_later_brackets_stop_later() -> None:
    scheduler = HyperbandScheduler(grace_steps=10, reduction_factor=3)
    of = [bracket(number, 3) for number in range(12)]
    assert [of.count(each) for each in range(3)] == [6, 4, 2]
    curves: list[Curve] = [{10: float(number)} for number in range(12)]
    for number, each in enumerate(of):
        stopped = stops(curves[: number + 1], number, scheduler)
        assert stopped == (each == 0)  # ever worse, and the others do not stop so early


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=60), st.integers(2, 4))
def test_no_more_go_on_than_have_room_beside_each_other(values: list[float], factor: int) -> None:
    scheduler = AshaScheduler(grace_steps=10, reduction_factor=factor)
    curves: list[Curve] = [{10: value} for value in dict.fromkeys(values)]
    go_on = [number for number in range(len(curves)) if not stops(curves, number, scheduler)]
    assert len(go_on) == len(curves) // factor
    assert all(curves[number][10] <= sorted(curve[10] for curve in curves)[len(go_on) - 1] for number in go_on)

"""The shape of every optimizer step: pure arithmetic, the same whoever asks and in whatever order."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.curriculum import BatchSizes, Curriculum, steps_for

SIZES = st.builds(
    lambda start, more, warmup: BatchSizes(start + more, start, warmup),
    st.integers(1, 9),
    st.integers(0, 40),
    st.integers(0, 60),
)
FRACTIONS = st.lists(st.integers(1, 20), min_size=1, max_size=4).map(lambda parts: [part / sum(parts) for part in parts])


def curriculum(fractions: list[float], sizes: BatchSizes, total_steps: int, micro_batch_size: int = 2) -> Curriculum:
    lengths = [8 * 4**s for s in range(len(fractions))]
    return Curriculum(lengths, fractions, micro_batch_size, sizes, total_steps)


def test_the_batch_grows_in_equal_increments() -> None:
    sizes = BatchSizes(full=8, start=2, warmup=3)
    assert [sizes.at(step) for step in range(5)] == [2, 4, 6, 8, 8]
    slow = BatchSizes(full=3, start=1, warmup=7)
    assert [slow.at(step) for step in range(9)] == [1, 1, 1, 1, 2, 2, 2, 3, 3]


@given(SIZES, st.integers(0, 150))
def test_what_came_before_a_step_is_the_sum_of_the_steps(sizes: BatchSizes, step: int) -> None:
    assert sizes.before(step) == sum(sizes.at(earlier) for earlier in range(step))


@given(st.integers(1, 400), st.integers(1, 12), st.integers(0, 12), st.floats(0, 1))
def test_a_run_takes_the_fewest_steps_that_hold_its_tokens(wanted: int, start: int, more: int, fraction: float) -> None:
    full = start + more
    steps = steps_for(wanted, full, start, fraction)
    taken = [BatchSizes.of_run(n, full, start, fraction).before(n) for n in range(steps + 3)]
    assert taken == sorted(taken)
    assert taken[steps] >= wanted > taken[steps - 1]


def test_without_a_warm_up_tokens_are_rounded_up_to_whole_steps() -> None:
    assert [steps_for(n, full=4, start=4, fraction=0.0) for n in (1, 4, 5, 40)] == [1, 1, 2, 10]


def test_segments_change_at_their_share_of_the_tokens() -> None:
    course = curriculum([0.2, 0.5, 0.3], BatchSizes(4, 4, 0), total_steps=100)
    assert course.starts == (0, 20, 70)
    assert [course.at(step).row_length for step in (0, 19, 20, 69, 70, 99)] == [8, 8, 32, 32, 128, 128]
    assert course.segment_tokens() == (20 * 4 * 256, 50 * 4 * 256, 30 * 4 * 256)


def test_with_a_batch_warm_up_segments_still_follow_the_tokens() -> None:
    course = curriculum([0.5, 0.5], BatchSizes(8, 1, 70), total_steps=100)
    # Of 520 micro-batches the first 67 steps take 259 and the first 68 take 266.
    assert course.starts == (0, 68)
    assert course.segment_tokens() == (266 * 64, 254 * 64)


@given(FRACTIONS, SIZES, st.integers(1, 120))
def test_every_step_and_micro_batch_has_the_tokens_that_its_size_says(
    fractions: list[float], sizes: BatchSizes, total_steps: int
) -> None:
    course = curriculum(fractions, sizes, total_steps)
    for step in range(total_steps):
        shape = course.at(step)
        assert shape.micro_batch_size * shape.row_length == course.micro_batch_tokens
        assert shape.rows * shape.row_length == course.tokens_before(step + 1) - course.tokens_before(step)
    assert sum(course.segment_tokens()) == course.tokens_before(total_steps)


@given(FRACTIONS, SIZES, st.integers(1, 120))
def test_samples_and_rows_are_numbered_without_gaps(fractions: list[float], sizes: BatchSizes, total_steps: int) -> None:
    course = curriculum(fractions, sizes, total_steps)
    shapes = [course.at(step) for step in range(total_steps)]
    assert (shapes[0].first_sample, shapes[0].first_row) == (0, 0)
    for one, following in pairwise(shapes):
        assert following.first_sample == one.first_sample + one.rows
        assert following.segment >= one.segment
        assert following.first_row == (one.first_row + one.rows if following.segment == one.segment else 0)


@given(FRACTIONS, SIZES, st.integers(1, 120))
def test_segments_are_within_a_step_of_their_share(fractions: list[float], sizes: BatchSizes, total_steps: int) -> None:
    course = curriculum(fractions, sizes, total_steps)
    step = sizes.full * course.micro_batch_tokens
    for tokens, fraction in zip(course.segment_tokens(), fractions, strict=True):
        assert abs(tokens - fraction * course.tokens_before(total_steps)) <= step


@pytest.mark.parametrize(
    ("fractions", "sizes", "plain"),
    [
        ([1.0], BatchSizes(4, 4, 0), True),
        ([1.0], BatchSizes(4, 4, 9), True),
        ([1.0], BatchSizes(4, 2, 0), True),
        ([1.0], BatchSizes(4, 2, 9), False),
        ([0.5, 0.5], BatchSizes(4, 4, 0), False),
    ],
)
def test_a_run_of_equal_steps_may_be_prolonged(fractions: list[float], sizes: BatchSizes, plain: bool) -> None:
    one, longer = (curriculum(fractions, sizes, total_steps).fingerprint() for total_steps in (20, 40))
    assert (one == "plain") == plain
    assert (one == longer) == (plain or len(fractions) == 1)

"""The order of a run whose steps differ: nothing is lost, nothing is seen twice, and no step needs to know the one before."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.apportion import batch_counts
from data.curriculum import BatchSizes, Curriculum
from data.errors import ShardError
from data.manifest import Manifest
from data.order import SampleOrder
from data.steps import StepOrder
from data.table import Ints
from tests.data.test_order import manifest

FLAT = BatchSizes(full=3, start=3, warmup=0)
RISING = BatchSizes(full=3, start=1, warmup=6)


def order(
    rows: list[int], sizes: BatchSizes, total_steps: int, shares: tuple[float, ...] = (1.0,), weights: list[float] | None = None
) -> StepOrder:
    lengths = [8 >> (len(shares) - 1 - s) for s in range(len(shares))]
    course = Curriculum(lengths, shares, micro_batch_size=2, sizes=sizes, total_steps=total_steps)
    return StepOrder(manifest(rows, weights or [1.0] * len(rows), shares=shares), seed=1, curriculum=course)


def test_steps_of_one_length_and_size_are_the_batches_of_the_plain_order() -> None:
    plain = SampleOrder(manifest([50, 70], [0.3, 0.7]), seed=1, global_batch_size=6)
    steps = order([50, 70], FLAT, 40, weights=[0.3, 0.7])
    for step in range(40):
        micro_batches = steps.micro_batches(step)
        assert [row for each in micro_batches for row in each.rows] == plain.batch(step)
        assert [n for each in micro_batches for n in each.samples] == list(range(6 * step, 6 * step + 6))
        assert [len(each.rows) for each in micro_batches] == [2, 2, 2]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 7), st.integers(1, 3))
def test_a_batch_warm_up_reads_the_same_rows_in_smaller_steps(warmup: int, start: int) -> None:
    whole = order([48], FLAT, 16)
    rows = [row for step in range(16) for each in whole.micro_batches(step) for row in each.rows]
    steps = order([48], BatchSizes(3, start, warmup), 16)
    warmed = [row for step in range(16) for each in steps.micro_batches(step) for row in each.rows]
    assert warmed == rows[: len(warmed)]


def test_an_epoch_of_each_segment_takes_each_of_its_rows_once() -> None:
    steps = order([12], FLAT, 12, shares=(0.25, 0.25, 0.5))
    seen = [row for step in range(12) for each in steps.micro_batches(step) for row in each.rows]
    # Three steps of 24 rows, three of 12, six of 6: each segment of 12 rows has six, three and three epochs.
    assert [seen.count(row) for row in range(36)] == [6] * 12 + [3] * 12 + [3] * 12


def test_each_micro_batch_is_of_one_segment_and_each_sample_has_one_number() -> None:
    steps = order([40, 60], RISING, 30, shares=(0.3, 0.7))
    micro_batches = [each for step in range(30) for each in steps.micro_batches(step)]
    assert all(max(each.rows) < 100 or min(each.rows) >= 100 for each in micro_batches)
    assert [len(each.rows) for each in micro_batches] == [4 if each.rows[0] < 100 else 2 for each in micro_batches]
    assert [n for each in micro_batches for n in each.samples] == list(range(sum(len(each.rows) for each in micro_batches)))


def test_every_step_of_a_batch_warm_up_is_within_two_rows_of_the_mix() -> None:
    steps = order([300, 700, 100], BatchSizes(16, 2, 40), 80, weights=[0.45, 0.35, 0.2])
    shares = [Fraction(9, 20), Fraction(7, 20), Fraction(4, 20)]
    for step in range(80):
        rows = [row for each in steps.micro_batches(step) for row in each.rows]
        counts = [sum(row < 300 for row in rows), sum(300 <= row < 1000 for row in rows), sum(row >= 1000 for row in rows)]
        assert all(abs(count - share * len(rows)) <= 2 for count, share in zip(counts, shares, strict=True))


# Ten cells in three languages and four domains.
LINES = [(language, domain) for language in ("zh", "en", "other") for domain in ("web", "papers", "encyclopedia")]
LINES += [("en", "code")]
PARTS = (264, 106, 80, 118, 47, 35, 118, 47, 35, 150)


def of_lines(shares: tuple[float, ...] = (1.0,), rows: int = 1000) -> Manifest:
    made = manifest([rows] * 10, [float(part) for part in PARTS], shares=shares)
    cells = (
        cell.model_copy(update={"language": language, "domain": domain})
        for cell, (language, domain) in zip(made.cells, LINES, strict=True)
    )
    return made.model_copy(update={"cells": tuple(cells)})


def furthest_off(rows: list[int], rows_of_cell: int = 1000) -> float:
    """Rows that any cell, language or domain is from its share of these rows."""
    count_C = np.bincount([row // rows_of_cell % 10 for row in rows], minlength=10)
    groups = [[line[kind] == name for line in LINES] for kind in (0, 1) for name in {line[kind] for line in LINES}]
    members_QC = np.array([*np.eye(10, dtype=bool), *groups])
    return float(np.abs(members_QC @ count_C - members_QC @ np.array(PARTS) / 1000 * len(rows)).max())


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 24), st.integers(1, 40), st.integers(1, 20), st.sampled_from([1, 2, 3]), st.booleans())
def test_every_step_has_the_mix_again_when_the_batch_is_full(
    full: int, start: int, warmup: int, size: int, curriculum: bool
) -> None:
    lengths, shares = ([4, 8], (0.25, 0.75)) if curriculum else ([8], (1.0,))
    course = Curriculum(lengths, shares, size, BatchSizes(full, min(start, full), warmup), warmup + 12)
    steps = StepOrder(of_lines(shares), seed=1, curriculum=course)
    for step in range(warmup + 12):
        rows = [row for each in steps.micro_batches(step) for row in each.rows]
        # Measured: 3.6 rows at most for these cells, in 150 courses.
        assert furthest_off(rows) < (1 if step >= warmup else 4)


def test_a_warm_up_leaves_no_row_out_and_draws_none_twice() -> None:
    course = Curriculum([8], [1.0], 1, BatchSizes(10, 3, 9), 60)
    steps = StepOrder(of_lines(rows=40), seed=1, curriculum=course)
    drawn: dict[int, list[int]] = {}
    for step in range(60):
        for each in steps.micro_batches(step):
            for row in each.rows:
                drawn.setdefault(row // 40, []).append(row)
    for cell, rows in drawn.items():
        for epoch in range(0, len(rows) - 39, 40):
            assert sorted(rows[epoch : epoch + 40]) == list(range(40 * cell, 40 * cell + 40))


def test_a_checkpoint_holds_the_patterns_of_all_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    course = Curriculum([4, 8], [0.5, 0.5], 1, FLAT, 20)
    made = of_lines((0.5, 0.5))
    state = StepOrder(made, 1, course).state()
    StepOrder(made, 1, course).require(state)

    def other(shares: list[Fraction], size: int, lines: list[tuple[str, str]], _: Path | None) -> Ints:
        # Another search, which differs for the first segment alone: its rows are half as long, its batches twice as many.
        return np.roll(batch_counts(shares, size, lines), 1 if size == 6 else 0, axis=0)

    monkeypatch.setattr("data.order.batch_counts", other)
    with pytest.raises(ShardError, match=r"mixture .* then"):
        StepOrder(made, 1, course).require(state)


def test_a_step_needs_no_other_step() -> None:
    settled = order([40, 60], RISING, 30, shares=(0.3, 0.7))
    forwards = [settled.micro_batches(step) for step in range(30)]
    for step in reversed(range(30)):
        assert order([40, 60], RISING, 30, shares=(0.3, 0.7)).micro_batches(step) == forwards[step]


def test_a_checkpoint_of_another_curriculum_is_refused_with_both() -> None:
    state = order([40], FLAT, 30).state()
    order([40], FLAT, 60).require(state)
    order([40], FLAT, 30).require({name: value for name, value in state.items() if name != "curriculum"})
    with pytest.raises(ShardError, match=r"curriculum plain then, .*warmup=6.* now"):
        order([40], RISING, 30).require(state)
    with pytest.raises(ShardError, match="global_batch_size 6 then, 8 now"):
        order([40], BatchSizes(4, 4, 0), 30).require(state)

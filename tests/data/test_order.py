"""The order of samples: a permutation of every epoch, an exact mix, and no dependence on who reads it."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import NotEnoughData, ShardError
from data.files import key64
from data.manifest import Cell, Count, Manifest, Segment, ShardInfo
from data.order import SampleOrder, batch_counts, permute, shares

WEIGHTS = st.lists(st.integers(1, 40).map(lambda w: w / 20), min_size=1, max_size=6)


def manifest(rows: list[int], weights: list[float], name: str = "a", shares: tuple[float, ...] = (1.0,)) -> Manifest:
    """``rows`` of each cell in each of ``len(shares)`` segments, whose rows are half as long as the next one's."""
    none = Count()
    segments = range(len(shares))
    return Manifest(
        hash=name,
        sequence_length=8,
        vocab_size=300,
        bos_id=1,
        eos_id=2,
        tokenizer_checksum="",
        cells=tuple(
            Cell(language="en", domain=str(i), weight=w, train=Count(rows=r), held_out=none)
            for i, (r, w) in enumerate(zip(rows, weights, strict=True))
        ),
        segments=tuple(
            Segment(sequence_length=8 >> (len(shares) - 1 - s), fraction=shares[s], cells=tuple(Count(rows=r) for r in rows))
            for s in segments
        ),
        shards=tuple(
            ShardInfo(file=f"{s}-{i}", split="train", cell=i, segment=s, documents=r, rows=r, pieces=r, tokens=r, checksum="")
            for s in segments
            for i, r in enumerate(rows)
            if r
        ),
        input_files=1,
        input_bytes=1,
        documents_read=1,
        drops={},
        unigram_loss=0.0,
        bigram_loss=0.0,
    )


@given(st.integers(1, 3000), st.integers(0, 2**32))
def test_the_permutation_is_a_bijection(size: int, seed: int) -> None:
    assert sorted(permute(np.arange(size, dtype=np.uint64), size, key64(seed)).tolist()) == list(range(size))


def test_another_key_gives_another_permutation() -> None:
    index = np.arange(1000, dtype=np.uint64)
    first, second = permute(index, 1000, key64(1)), permute(index, 1000, key64(2))
    assert (first != second).mean() > 0.99
    assert (first != index).mean() > 0.99


@given(WEIGHTS, st.integers(1, 48))
@settings(deadline=None, max_examples=60)
def test_every_batch_and_every_run_of_batches_is_within_one_row_of_the_mix(weights: list[float], batch: int) -> None:
    parts = shares(weights)
    counts = batch_counts(parts, batch)
    assert (counts.sum(axis=1) == batch).all()
    runs = np.cumsum(counts, axis=0)
    for cell, share in enumerate(parts):
        exact = share * batch
        assert all(abs(int(count) - exact) < 1 for count in counts[:, cell])
        assert all(abs(int(run) - (k + 1) * exact) < 1 for k, run in enumerate(runs[:, cell]))
        assert runs[-1, cell] == len(counts) * exact


def test_decimal_weights_are_exact_shares() -> None:
    assert shares([0.45, 0.35, 0.2]) == [Fraction(9, 20), Fraction(7, 20), Fraction(1, 5)]


def test_weights_too_fine_to_be_exact_are_rounded_and_none_vanishes() -> None:
    parts = shares([1 / 3, 0.123456789, 1e-9])
    assert sum(parts) == 1
    assert min(parts) > 0
    assert abs(parts[0] - Fraction(1, 3) / Fraction(1 / 3 + 0.123456789)) < Fraction(1, 5000)


def test_an_epoch_takes_every_row_once_and_the_next_in_another_order() -> None:
    order = SampleOrder(manifest([12], [1.0]), seed=3, global_batch_size=4)
    first = [row for step in range(3) for row in order.batch(step)]
    second = [row for step in range(3, 6) for row in order.batch(step)]
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_a_batch_reaches_over_the_border_of_an_epoch() -> None:
    order = SampleOrder(manifest([5], [1.0]), seed=0, global_batch_size=8)
    rows = [row for step in range(5) for row in order.batch(step)]
    assert [rows.count(row) for row in range(5)] == [8] * 5


def test_cells_have_their_own_epochs() -> None:
    order = SampleOrder(manifest([4, 40], [1.0, 1.0]), seed=0, global_batch_size=8)
    rows = [row for step in range(10) for row in order.batch(step)]
    assert [rows.count(row) for row in range(44)] == [10] * 4 + [1] * 40


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6])
def test_ranks_that_share_a_batch_see_together_what_one_would(world: int) -> None:
    order = SampleOrder(manifest([50, 70], [0.3, 0.7]), seed=1, global_batch_size=12)
    for step in range(20):
        whole = order.batch(step)
        share = 12 // world
        # A rank that has just joined knows nothing but the step.
        fresh = [SampleOrder(manifest([50, 70], [0.3, 0.7]), 1, 12).batch(step) for _ in range(world)]
        assert [row for rank in range(world) for row in fresh[rank][rank * share : (rank + 1) * share]] == whole


def test_every_micro_batch_has_nearly_the_mix_of_the_batch() -> None:
    order = SampleOrder(manifest([100, 300], [0.25, 0.75]), seed=0, global_batch_size=32)
    batch = order.batch(7)
    assert [sum(row < 100 for row in batch[at : at + 8]) for at in range(0, 32, 8)] == [2, 2, 2, 2]


def test_a_checkpoint_of_another_order_is_refused_with_what_differs() -> None:
    state = SampleOrder(manifest([9], [1.0]), seed=1, global_batch_size=4).state()
    SampleOrder(manifest([9], [1.0]), seed=1, global_batch_size=4).require(state)
    with pytest.raises(ShardError, match="seed 1 then, 2 now"):
        SampleOrder(manifest([9], [1.0]), seed=2, global_batch_size=4).require(state)
    with pytest.raises(ShardError, match="manifest a then, b now"):
        SampleOrder(manifest([9], [1.0], name="b"), seed=1, global_batch_size=4).require(state)


def test_a_cell_without_rows_is_named() -> None:
    with pytest.raises(NotEnoughData, match="en/1 has no training rows"):
        SampleOrder(manifest([5, 0], [1.0, 1.0]), seed=0, global_batch_size=2)

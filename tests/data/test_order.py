"""The order of samples: a permutation of every epoch, an exact mix, and no dependence on who reads it."""

import random
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.apportion import batch_counts
from data.errors import NotEnoughData, ShardError
from data.files import key64
from data.manifest import Cell, Count, Manifest, Segment, ShardInfo
from data.mixture import exact_shares
from data.order import SampleOrder, permute

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
@settings(deadline=None)
def test_the_permutation_is_a_bijection(size: int, seed: int) -> None:
    assert sorted(permute(np.arange(size, dtype=np.uint64), size, key64(seed)).tolist()) == list(range(size))


def test_another_key_gives_another_permutation() -> None:
    index = np.arange(1000, dtype=np.uint64)
    first, second = permute(index, 1000, key64(1)), permute(index, 1000, key64(2))
    assert (first != second).mean() > 0.99
    assert (first != index).mean() > 0.99


def sums(counts: npt.NDArray[np.int64], parts: list[Fraction], lines: list[tuple[str, str]]) -> Iterator[tuple[Any, Fraction]]:
    """Rows in each batch, and share, of every cell, language and domain."""
    names = sorted({(kind, line[kind]) for line in lines for kind in (0, 1)})
    groups = [[line[kind] == name for line in lines] for kind, name in names]
    for members in [*np.eye(len(parts), dtype=bool), *np.array(groups)]:
        yield counts[:, members].sum(axis=1), sum(np.array(parts)[members], Fraction())


def furthest_in_batches(counts: npt.NDArray[np.int64], parts: list[Fraction], lines: list[tuple[str, str]]) -> tuple[Any, Any]:
    """How far, in rows, any cell, language or domain is from its share: in a batch, and in the first n batches."""
    size = int(counts[0].sum())
    in_one, in_all = Fraction(), Fraction()
    for rows, share in sums(counts, parts, lines):
        exact = share * size
        in_one = max(in_one, *(abs(int(count) - exact) for count in (rows.min(), rows.max())))
        runs = np.cumsum(rows) * exact.denominator - np.arange(1, len(rows) + 1) * exact.numerator
        in_all = max(in_all, Fraction(int(np.abs(runs).max()), exact.denominator))
        assert runs[-1] == 0
    return in_one, in_all


@given(WEIGHTS, st.integers(1, 48))
@settings(deadline=None, max_examples=60)
def test_every_batch_is_within_one_row_of_the_mix_and_every_run_of_batches_within_two(weights: list[float], batch: int) -> None:
    parts = exact_shares(weights)
    counts = batch_counts(parts, batch)
    assert (counts.sum(axis=1) == batch).all()
    in_one, in_all = furthest_in_batches(counts, parts, [("en", str(cell)) for cell in range(len(parts))])
    assert in_one < 1
    # One in some hundreds of these mixes is not within one: the search is given up.
    assert in_all < 2


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Fraction], list[tuple[str, str]]]:
    """Shares of cells in up to four languages and five domains, not all of which meet."""
    languages, domains = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    every = [(str(language), str(domain)) for language in range(languages) for domain in range(domains)]
    lines = draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    weights = draw(st.lists(st.integers(1, 30), min_size=len(lines), max_size=len(lines)))
    return [Fraction(weight, sum(weights)) for weight in weights], lines


@given(tables(), st.integers(1, 48))
@settings(deadline=None, max_examples=80)
def test_languages_and_domains_are_within_one_row_too(table: tuple[list[Fraction], list[tuple[str, str]]], batch: int) -> None:
    parts, lines = table
    counts = batch_counts(parts, batch, lines)
    assert (counts >= 0).all()
    assert (counts.sum(axis=1) == batch).all()
    in_one, in_all = furthest_in_batches(counts, parts, lines)
    assert in_one < 1
    # The search for this one does not always succeed: see the next test.
    assert in_all < 2


def test_nearly_every_mix_is_within_one_row_over_all_batches() -> None:
    draw = random.Random(5)
    beyond = 0
    for _ in range(150):
        every = [(str(i // 5), str(i % 5)) for i in range(20)]
        lines = draw.sample(every, draw.randint(2, 16))
        cuts = sorted(draw.sample(range(1, 100), len(lines) - 1))
        parts = [Fraction(b - a, 100) for a, b in pairwise([0, *cuts, 100])]
        counts = batch_counts(parts, draw.choice([4, 7, 8, 16, 24, 32, 60]), lines)
        beyond += furthest_in_batches(counts, parts, lines)[1] >= 1
    assert beyond <= 3


def test_a_mix_that_is_further_off_over_all_batches_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    cells = [(language, domain) for language in ("zh", "en", "other") for domain in ("web", "papers", "encyclopedia")]
    lines = [*cells, ("en", "code")]
    parts = [Fraction(part, 1000) for part in (264, 106, 80, 118, 47, 35, 118, 47, 35, 150)]
    first = batch_counts(parts, 257, lines)
    assert batch_counts(parts, 257, lines) is first
    in_one, in_all = furthest_in_batches(first, parts, lines)
    assert in_one < 1
    assert 1 <= in_all < 2
    [record] = caplog.records
    assert f"up to {float(in_all):.2f} rows off" in record.getMessage()


def test_decimal_weights_are_exact_shares() -> None:
    assert exact_shares([0.45, 0.35, 0.2]) == [Fraction(9, 20), Fraction(7, 20), Fraction(1, 5)]


def test_weights_too_fine_to_be_exact_are_rounded_and_none_vanishes() -> None:
    parts = exact_shares([1 / 3, 0.123456789, 1e-9])
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

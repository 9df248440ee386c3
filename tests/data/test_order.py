"""The order of samples: a permutation of every epoch, an exact mix, and no dependence on who reads it."""

import math
import random
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from data import beam
from data.apportion import batch_counts, most_urgent_first
from data.errors import NotEnoughData, ShardError
from data.files import key64
from data.manifest import Cell, Count, Manifest, Segment, ShardInfo
from data.mixture import exact_shares
from data.order import SampleOrder, permute
from data.patterns import SEARCH_VERSION
from data.table import Table

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
def test_every_batch_and_every_run_of_batches_is_within_one_row_of_the_mix(weights: list[float], batch: int) -> None:
    parts = exact_shares(weights)
    counts = batch_counts(parts, batch)
    assert (counts.sum(axis=1) == batch).all()
    in_one, in_all = furthest_in_batches(counts, parts, [("en", str(cell)) for cell in range(len(parts))])
    assert in_one < 1
    assert in_all < 1


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Fraction], list[tuple[str, str]]]:
    """Shares of cells in up to four languages and five domains, not all of which meet."""
    languages, domains = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    every = [(str(language), str(domain)) for language in range(languages) for domain in range(domains)]
    lines = draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    weights = draw(st.lists(st.integers(1, 30), min_size=len(lines), max_size=len(lines)))
    return [Fraction(weight, sum(weights)) for weight in weights], lines


@given(tables(), st.integers(1, 48))
@settings(deadline=None, max_examples=60)
def test_languages_and_domains_are_within_one_row_too(table: tuple[list[Fraction], list[tuple[str, str]]], batch: int) -> None:
    parts, lines = table
    counts = batch_counts(parts, batch, lines)
    assert (counts >= 0).all()
    assert (counts.sum(axis=1) == batch).all()
    in_one, in_all = furthest_in_batches(counts, parts, lines)
    assert in_one < 1
    # Of some tables no schedule is within less.
    assert in_all <= 1


# Three languages, of which other has one that is meant, in four domains.
LINES = [(language, domain) for language in ("zh", "en", "other") for domain in ("web", "papers", "encyclopedia")]
LINES += [("en", "code")]
PARTS = [Fraction(part, 1000) for part in (264, 106, 80, 118, 47, 35, 118, 47, 35, 150)]


@pytest.mark.parametrize("size", [8, 33, 64, 106, 161, 187, 234, 257, 371, 481, 512])
def test_a_mix_of_languages_and_domains_is_met_over_all_batches_of_odd_sizes(size: int) -> None:
    # A search that only takes the most urgent first fails for all but three of these.
    counts = batch_counts(PARTS, size, LINES)
    assert (counts.sum(axis=1) == size).all()
    in_one, in_all = furthest_in_batches(counts, PARTS, LINES)
    assert in_one < 1
    assert in_all < 1


def test_where_a_narrow_search_finds_nothing_a_wider_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(29)
    lines = [(str(i // 5), str(i % 5)) for i in range(25)]
    cuts = sorted(draw.sample(range(1, 200), 24))
    parts = [Fraction(b - a, 200) for a, b in pairwise([0, *cuts, 200])]
    with monkeypatch.context() as narrow:
        narrow.setattr(beam, "_NARROW", beam._NARROW[:1])
        narrow.setattr(beam, "_WIDE", ())
        assert beam.search(Table(parts, 91, lines)) is None
    assert furthest_in_batches(batch_counts(parts, 91, lines), parts, lines)[1] < 1


def cells_of_many_lines(seed: int) -> tuple[list[Fraction], list[tuple[str, str]], int]:
    """Shares, lines and the size of a batch: some cells of many are rare, and a few are most of it."""
    draw = random.Random(seed)
    languages, domains = draw.randint(5, 8), draw.randint(5, 7)
    every = [(f"l{i}", f"d{j}") for i in range(languages) for j in range(domains)]
    lines = draw.sample(every, draw.randint(30, min(40, len(every))) if len(every) >= 30 else len(every))
    weights = [draw.choice([1, 1, 2, 3, 50, 100]) for _ in lines]
    return [Fraction(weight, sum(weights)) for weight in weights], lines, draw.choice([8, 32, 64, 128, 256])


def fewer_cells_of_many_lines(seed: int) -> tuple[list[Fraction], list[tuple[str, str]], int]:
    draw = random.Random(seed)
    languages, domains = draw.randint(4, 8), draw.randint(4, 7)
    every = [(f"l{i}", f"d{j}") for i in range(languages) for j in range(domains)]
    lines = draw.sample(every, draw.randint(16, min(29, len(every))))
    weights = [draw.choice([1, 1, 2, 3, 5, 10, 50]) for _ in lines]
    return [Fraction(weight, sum(weights)) for weight in weights], lines, draw.choice([8, 16, 32, 64, 128])


@pytest.mark.parametrize("mix", [cells_of_many_lines(133), fewer_cells_of_many_lines(50022)], ids=["37 cells", "fewer cells"])
def test_a_large_table_that_few_states_do_not_suffice_for_is_searched_with_more(
    mix: tuple[list[Fraction], list[tuple[str, str]], int],
) -> None:
    parts, lines, size = mix
    in_one, in_all = furthest_in_batches(batch_counts(parts, size, lines), parts, lines)
    assert in_one < 1
    assert in_all <= 1


def schedulable(parts: list[Fraction], size: int, lines: list[tuple[str, str]]) -> bool:
    """Whether there are batches, each and the first n for all n rounded, tried out one and all: only for small tables."""
    groups = [[i == c for i in range(len(parts))] for c in range(len(parts))]
    groups += [[line[kind] == name for line in lines] for kind in (0, 1) for name in {line[kind] for line in lines}]
    exact = [size * sum(part for part, inside in zip(parts, members, strict=True) if inside) for members in groups]

    def rounded(rows: tuple[int, ...], batches: int) -> bool:
        sums = [sum(n for n, inside in zip(rows, members, strict=True) if inside) for members in groups]
        return all(abs(n - batches * x) < 1 for n, x in zip(sums, exact, strict=True))

    choices = product(*({math.floor(size * part), math.ceil(size * part)} for part in parts))
    batches = [batch for batch in choices if sum(batch) == size and rounded(batch, 1)]
    had = {(0,) * len(parts)}
    for n in range(1, math.lcm(*(x.denominator for x in exact)) + 1):
        after = {tuple(a + b for a, b in zip(rows, batch, strict=True)) for rows in had for batch in batches}
        had = {rows for rows in after if rounded(rows, n)}
    return bool(had)


# Eight cells in four languages and three domains, six batches of six rows.
NEVER = (8, 8, 9, 3, 2, 1, 2, 3), ("zh web", "en web", "en papers", "en code", "de code", "fr papers", "fr code", "de web")


@pytest.mark.parametrize(("size", "possible"), [(6, False), (5, True), (7, True)])
def test_where_the_first_batches_cannot_all_be_rounded_they_are_one_row_off_and_no_more(size: int, possible: bool) -> None:
    weights, names = NEVER
    parts = [Fraction(weight, sum(weights)) for weight in weights]
    lines = [(language, domain) for language, domain in (name.split() for name in names)]
    assert schedulable(parts, size, lines) == possible
    in_one, in_all = furthest_in_batches(batch_counts(parts, size, lines), parts, lines)
    assert in_one < 1
    assert in_all < 1 if possible else in_all == 1


def test_the_schedule_is_the_same_everywhere() -> None:
    # Another schedule needs another version too: files of the older one would be read.
    assert SEARCH_VERSION == 1
    assert xxhash.xxh3_64_hexdigest(batch_counts(PARTS, 33, LINES).astype("<i8").tobytes()) == "fb82145a665c0cd1"


@given(tables(), st.integers(1, 24))
@settings(deadline=None, max_examples=20)
def test_the_most_urgent_first_is_within_one_row_in_every_batch_and_closes(
    table: tuple[list[Fraction], list[tuple[str, str]]], batch: int
) -> None:
    parts, lines = table
    made = Table(parts, batch, lines)
    counts = most_urgent_first(made) + np.array(made.base_C)
    assert (counts.sum(axis=1) == batch).all()
    # That the sums over the period are exact is asserted there.
    in_one, in_all = furthest_in_batches(counts, parts, lines)
    assert in_one < 1
    assert made.furthest(most_urgent_first(made)) == in_all


def test_a_table_too_large_to_search_has_the_mix_in_every_batch_and_the_log_tells_how_far_all_are_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    draw = random.Random(2)
    lines = [(str(i // 6), str(i % 6)) for i in range(72)]
    cuts = sorted(draw.sample(range(1, 250), 71))
    parts = [Fraction(b - a, 250) for a, b in pairwise([0, *cuts, 250])]
    assert beam.search(Table(parts, 33, lines)) is None
    first = batch_counts(parts, 33, lines)
    assert batch_counts(parts, 33, lines) is first
    in_one, in_all = furthest_in_batches(first, parts, lines)
    assert in_one < 1
    assert in_all > 1
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

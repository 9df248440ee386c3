"""Length buckets: short documents have short rows, micro-batches one length and as many tokens, and the order stays exact."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.buckets import BucketOrder, Turns, bucket_shares, order_of_run
from data.curriculum import BatchSizes, Curriculum
from data.dataset import PackedDataset
from data.errors import ShardError
from data.manifest import Count, Manifest, Segment, ShardInfo, require_rows
from data.spec import SourceSpec
from data.steps import StepOrder
from tests.data.conftest import Preparation, data_spec, json_lines, texts, write
from tests.data.test_order import manifest

LENGTHS = (2, 4, 8)


def bucketed(rows_BC: list[list[int]], weights: list[float]) -> Manifest:
    """Buckets of rows of 2, 4 and 8 tokens."""
    shards = tuple(
        ShardInfo(file=f"{b}-{c}", split="train", cell=c, segment=b, documents=n, rows=n, pieces=n, tokens=n, checksum="")
        for b, of_bucket in enumerate(rows_BC)
        for c, n in enumerate(of_bucket)
        if n
    )
    segments = tuple(
        Segment(sequence_length=length, fraction=0.0, cells=tuple(Count(rows=n) for n in of_bucket))
        for length, of_bucket in zip(LENGTHS, rows_BC, strict=True)
    )
    made = manifest([1] * len(weights), weights)
    return made.model_copy(update={"shards": shards, "segments": segments, "bucketed": True})


def order(made: Manifest, micro_batches: int = 3, size: int = 2, **sizes: int) -> BucketOrder:
    course = Curriculum(
        [8], [1.0], size, BatchSizes(micro_batches, sizes.get("start", micro_batches), sizes.get("warmup", 0)), 60
    )
    return BucketOrder(made, 1, course)


ROWS = st.lists(st.lists(st.integers(0, 12), min_size=2, max_size=2), min_size=3, max_size=3).filter(
    lambda rows: all(any(of_bucket[cell] for of_bucket in rows) for cell in (0, 1))
)


@given(ROWS, st.integers(1, 9))
@settings(deadline=None, max_examples=12)
def test_every_micro_batch_has_one_length_and_as_many_tokens(rows_BC: list[list[int]], weight: int) -> None:
    made = bucketed(rows_BC, [weight, 10 - weight])
    bucket_of = [info.segment for info in made.shards for _ in range(info.rows)]
    numbers: list[int] = []
    run = order(made)
    for step in range(20):
        lengths: list[int] = []
        micro_batches = run.micro_batches(step)
        assert len(micro_batches) == 3
        for each in micro_batches:
            [bucket] = {bucket_of[row] for row in each.rows}
            assert len(each.rows) * LENGTHS[bucket] == 2 * 8
            lengths.append(LENGTHS[bucket])
            numbers += each.samples
        assert run.row_lengths(step) == lengths
    assert numbers == list(range(len(numbers)))


def test_rows_of_a_cell_are_read_equally_often_whatever_their_length_and_cells_have_their_shares() -> None:
    made = bucketed([[40, 0], [20, 40], [10, 20]], [3.0, 1.0])
    cell_of = [info.cell for info in made.shards for _ in range(info.rows)]
    bucket_of = [info.segment for info in made.shards for _ in range(info.rows)]
    read = [0] * len(cell_of)
    run = order(made)
    for step in range(400):
        for each in run.micro_batches(step):
            for row in each.rows:
                read[row] += 1
    tokens = [sum(n * LENGTHS[bucket_of[row]] for row, n in enumerate(read) if cell_of[row] == cell) for cell in (0, 1)]
    assert tokens[0] / sum(tokens) == pytest.approx(0.75, abs=0.005)
    for cell in (0, 1):
        # Epochs of each bucket's rows of the cell.
        often = [
            sum(n for row, n in enumerate(read) if (cell_of[row], bucket_of[row]) == (cell, bucket))
            / made.segments[bucket].cells[cell].rows
            for bucket in range(3)
            if made.segments[bucket].cells[cell].rows
        ]
        assert max(often) / min(often) == pytest.approx(1, abs=0.03)


def test_shares_follow_the_room_of_the_rows() -> None:
    shares_BC = bucket_shares([1.0, 1.0], [[10, 0], [30, 5]])
    assert shares_BC == [[Fraction(1, 8), 0], [Fraction(3, 8), Fraction(1, 2)]]


def test_the_first_micro_batches_of_a_run_have_their_buckets_within_one() -> None:
    made = bucketed([[40], [20], [10]], [1.0])
    bucket_of = [info.segment for info in made.shards for _ in range(info.rows)]
    seen = [0, 0, 0]
    done = 0
    run = order(made)
    for step in range(50):
        for each in run.micro_batches(step):
            done += 1
            seen[bucket_of[each.rows[0]]] += 1
            assert all(abs(n - done / 3) < 1 for n in seen)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=4), st.integers(0, 5000))
def test_turns_are_in_exact_shares_and_the_rarest_has_no_more(weights: list[int], n: int) -> None:
    turns = Turns([Fraction(weight) for weight in weights])
    before, after = turns.before(n), turns.before(n + 1)
    assert sum(before) == n
    assert [new - old for old, new in zip(before, after, strict=True)] == [i == turns.at(n) for i in range(len(weights))]
    assert all(abs(count - Fraction(n * weight, sum(weights))) <= 1 for count, weight in zip(before, weights, strict=True))
    assert turns.before(n * sum(weights)) == [n * weight for weight in weights]


def test_a_rare_bucket_is_read_as_often_as_the_others() -> None:
    # Of the text 0.015% is in rows of two tokens.
    made = bucketed([[12], [0], [20_000]], [1.0])
    run = order(made, size=1)
    epoch = sum(segment.rows * segment.sequence_length for segment in made.segments) // 8
    lengths = [length for step in range(epoch // 3) for length in run.row_lengths(step)]
    # Four rows a micro-batch, so three of them are an epoch.
    assert lengths.count(2) == pytest.approx(3, abs=1)


def test_a_step_needs_no_other_step_and_a_warm_up_reads_the_same_rows() -> None:
    made = bucketed([[40, 0], [20, 40], [10, 20]], [3.0, 1.0])
    steady = [each for step in range(12) for each in order(made).micro_batches(step)]
    backwards = [order(made).micro_batches(step) for step in reversed(range(12))]
    assert [each for step in reversed(backwards) for each in step] == steady
    rising = [each for step in range(12) for each in order(made, start=1, warmup=20).micro_batches(step)]
    assert len(rising) < len(steady)
    assert rising == steady[: len(rising)]


def test_a_checkpoint_of_another_order_is_refused() -> None:
    made = bucketed([[4], [4], [4]], [1.0])
    state = order(made).state()
    order(made).require(state)
    order(made, micro_batches=5).require(state)
    with pytest.raises(ShardError, match="micro_batch_tokens 16 then, 32 now"):
        order(made, size=4).require(state)


def test_prepared_documents_lie_in_the_shortest_row_that_holds_them(tmp_path: Path, preparation: Preparation) -> None:
    sources = [
        SourceSpec(path=write(tmp_path / "a.jsonl", json_lines(texts(60, words=60)))),
        SourceSpec(path=write(tmp_path / "b.jsonl", json_lines(texts(30, seed=1, words=12))), language="zh"),
    ]
    settings_: dict[str, Any] = {"sequence_length": 128, "packing": "one_document", "shard_documents": 16}
    plain = PackedDataset.open(preparation(data_spec(*sources, **settings_)).path)
    dataset = PackedDataset.open(preparation(data_spec(*sources, **settings_, length_buckets=(32, 64))).path)
    made = dataset.manifest
    assert made.tokens("train") == plain.manifest.tokens("train")
    assert made.documents("train") == plain.manifest.documents("train")
    room = [segment.rows * segment.sequence_length for segment in made.segments]
    assert sum(room) < 0.8 * plain.num_rows("train") * 128
    assert sum(segment.fraction for segment in made.segments) == pytest.approx(1)
    require_rows(made, 8)
    run = order_of_run(made, 0, Curriculum([128], [1.0], 2, BatchSizes(4, 4, 0), 10))
    for step in range(10):
        for each in run.micro_batches(step):
            batch = dataset.rows("train", *each)
            length = batch.tokens.shape[1]
            assert batch.tokens.size == 2 * 128
            assert batch.document_ids.max() == 0
            tokens = (batch.document_ids == 0).sum(axis=1)
            assert (tokens > {32: 0, 64: 32, 128: 64}[length]).all()
    assert dataset.rows("held_out", range(dataset.num_rows("held_out"))).tokens.shape[1] == 128
    assert isinstance(order_of_run(plain.manifest, 0, Curriculum([128], [1.0], 2, BatchSizes(4, 4, 0), 10)), StepOrder)


@pytest.mark.parametrize(
    ("settings_", "detail"),
    [
        ({"packing": "best_fit"}, "are for packing one_document"),
        ({"length_buckets": (16, 8)}, "must rise and divide"),
        ({"length_buckets": (24,)}, "must rise and divide"),
        ({"length_buckets": (8,), "document_alignment": 16}, "does not divide each of length_buckets"),
    ],
)
def test_buckets_that_do_not_fit_are_refused(settings_: dict[str, Any], detail: str) -> None:
    with pytest.raises(ValidationError, match=detail):
        data_spec("a", **{"packing": "one_document", "length_buckets": (8, 16), **settings_})

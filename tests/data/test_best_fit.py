"""Packing keeps every token exactly once and wastes little."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.best_fit import aligned, pack

LENGTHS = st.lists(st.integers(1, 100), max_size=60)
ROW = st.integers(1, 40)
ALIGN = st.integers(1, 9)


@given(LENGTHS, ROW, ALIGN)
def test_every_token_is_in_exactly_one_piece(lengths: list[int], blocks: int, align: int) -> None:
    pieces = [piece for row in pack(lengths, blocks * align, align) for piece in row]
    kept = sorted((piece.document, piece.start + i) for piece in pieces for i in range(piece.length))
    assert kept == [(document, i) for document, length in enumerate(lengths) for i in range(length)]


@given(LENGTHS, ROW)
def test_no_row_is_too_long_and_none_is_empty(lengths: list[int], row_length: int) -> None:
    assert all(0 < sum(piece.length for piece in row) <= row_length for row in pack(lengths, row_length))


@given(LENGTHS, ROW)
def test_a_document_that_fits_a_row_is_not_cut(lengths: list[int], row_length: int) -> None:
    pieces = [piece for row in pack(lengths, row_length) for piece in row]
    for document, length in enumerate(lengths):
        assert sum(piece.document == document for piece in pieces) == -(-length // row_length)


@given(LENGTHS, ROW)
def test_no_two_rows_would_fit_into_one(lengths: list[int], row_length: int) -> None:
    filled = sorted(sum(piece.length for piece in row) for row in pack(lengths, row_length))
    assert len(filled) < 2 or filled[0] + filled[1] > row_length


@given(LENGTHS, ROW, ALIGN)
def test_aligned_pieces_are_packed_as_if_a_block_were_a_token(lengths: list[int], blocks: int, align: int) -> None:
    in_blocks = pack([-(-length // align) for length in lengths], blocks)
    rows = pack(lengths, blocks * align, align)
    assert sorted([(p.document, p.start, aligned(p.length, align)) for p in row] for row in rows) == sorted(
        [(p.document, p.start * align, p.length * align) for p in row] for row in in_blocks
    )


def test_a_row_that_is_no_multiple_of_the_alignment_is_refused() -> None:
    with pytest.raises(ValueError, match="row of 10 tokens is no multiple of align 4"):
        pack([3], 10, 4)


def test_the_longest_goes_first_and_the_tightest_room_is_taken() -> None:
    rows = pack([3, 6, 4, 7, 10], 10)
    assert sorted([piece.length for piece in row] for row in rows) == [[6, 4], [7, 3], [10]]


def test_nothing_gives_no_rows() -> None:
    assert pack([], 8) == []

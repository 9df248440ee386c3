"""Documents into rows of fixed length, with little padding and no document mixed up with another.

Best-fit-decreasing as in "Fewer Truncations Improve Language Modeling" (arXiv 2404.10830): a document longer than a row is cut
into whole rows and a rest; rests and short documents are packed, longest first, each where it leaves the least room.

A piece may be asked to begin at a multiple of ``align``, for attention that works in blocks; the gap before it is padding.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """``length`` tokens of document ``document``, from its token ``start`` on."""

    document: int
    start: int
    length: int


def aligned(length: int, align: int) -> int:
    """``length`` tokens rounded up to a multiple of ``align``: from one piece's beginning to where the next may begin."""
    return -(-length // align) * align


def pack(lengths: Sequence[int], row_length: int, align: int = 1) -> list[list[Piece]]:
    """Rows of pieces, each row at most ``row_length`` tokens; every token of every document is in exactly one piece.

    Args:
        lengths: tokens of each document, all positive.
        align: pieces begin at multiples of this many tokens: ``aligned(length, align)`` after the one before.

    Raises:
        ValueError: ``row_length`` is no multiple of ``align``.

    Deterministic; O(n log n) comparisons.
    """
    if row_length % align:
        raise ValueError(f"a row of {row_length} tokens is no multiple of align {align}")
    pieces = [row[0] for row in one_a_row(lengths, row_length)]
    rows = [[piece] for piece in pieces if piece.length == row_length]
    rests = [piece for piece in pieces if piece.length < row_length]
    rests.sort(key=lambda piece: -aligned(piece.length, align))
    open_rows: list[tuple[int, int]] = []  # (room left, index in rows), sorted
    for piece in rests:
        room_taken = aligned(piece.length, align)
        at = bisect_left(open_rows, (room_taken, -1))
        if at < len(open_rows):
            room, row = open_rows.pop(at)
        else:
            room, row = row_length, len(rows)
            rows.append([])
        rows[row].append(piece)
        if room > room_taken:
            insort(open_rows, (room - room_taken, row))
    return rows


def one_a_row(lengths: Sequence[int], row_length: int) -> list[list[Piece]]:
    """Rows of one piece each, in the order of the documents: a longer document has several, of which the last is shorter."""
    return [
        [Piece(document, start, min(row_length, length - start))]
        for document, length in enumerate(lengths)
        for start in range(0, length, row_length)
    ]

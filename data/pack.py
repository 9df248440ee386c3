"""Documents into rows of fixed length, with little padding and no document mixed up with another.

Best-fit-decreasing as in "Fewer Truncations Improve Language Modeling" (arXiv 2404.10830): a document longer than a row is cut
into whole rows and a rest; rests and short documents are packed, longest first, each where it leaves the least room.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """``length`` tokens of document ``document``, from its token ``start`` on."""

    document: int
    start: int
    length: int


def pack(lengths: Sequence[int], row_length: int) -> list[list[Piece]]:
    """Rows of pieces, each row at most ``row_length`` tokens; every token of every document is in exactly one piece.

    Args:
        lengths: tokens of each document, all positive.

    Deterministic; O(n log n) comparisons.
    """
    rows: list[list[Piece]] = []
    rests: list[Piece] = []
    for document, length in enumerate(lengths):
        whole = length - length % row_length
        rows.extend([Piece(document, start, row_length)] for start in range(0, whole, row_length))
        if length > whole:
            rests.append(Piece(document, whole, length - whole))
    rests.sort(key=lambda piece: -piece.length)
    open_rows: list[tuple[int, int]] = []  # (room left, index in rows), sorted
    for piece in rests:
        at = bisect_left(open_rows, (piece.length, -1))
        if at < len(open_rows):
            room, row = open_rows.pop(at)
        else:
            room, row = row_length, len(rows)
            rows.append([])
        rows[row].append(piece)
        if room > piece.length:
            insort(open_rows, (room - piece.length, row))
    return rows

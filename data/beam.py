"""A search for a schedule whose first n batches together have the mix too, rounded, for every n.

After n batches a cell or line, whose share of a batch is x, has had floor(n x) or ceil(n x) rows: one bit says which. The bits
say what the next batch may hold beyond whole rows. Where floor(n x) does not grow with it, what is rounded up gets no extra
row; where it grows, what is rounded down gets one; anything else may. Nothing else matters to later batches, so the search
takes a number of states, those nearest to the exact shares, one batch on, and so forth (beam search; Lowerre, "The Harpy speech
recognition system", 1976). After the period's last batch every n x is whole, so there is one state, and the pattern closes.

Some tables have no such schedule. Where none is found, a whole n x may be one row over as well, but for the period's last: what
is rounded up then need not wait for a batch in which floor(n x) does not grow. That is still within one row.

A batch is put together row by row: each row takes one of the subsets of its cells. What the columns have by then is held in
fields of one word, so one subtraction compares all of them with their bounds. One more column has all cells.

Legend: C cells, K batches in a period, Q cells and rows, D columns, S states, P batches in the making, O subsets of a row.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.table import Ints, Table

Mask = npt.NDArray[np.bool_]

_NARROW = ((16, 8), (32, 8), (64, 8))
_WIDE = ((128, 64),)
"""States that are kept, and batches in the making that are kept for each: every so many of all, since those that are alike
fail alike. The next pair is tried where one does not do. The first does for nearly every mix; some of 20 cells and more need
the last, which takes 7 ms for each batch of the period with 20 cells and 12 ms with 25."""
_LONGEST_WIDE = 2_000
"""Batches of the longest period that the last is tried for: the longer the period, the longer the worker that searches."""
_TOGETHER = 64
"""Subsets that rows taken together have at most; the first ones, which few states choose from, as many for each batch in the
making that is kept."""
_WORD_BITS = 63
_LONGEST_ROW = 10


def search(table: Table) -> Ints | None:
    """Extra rows of each cell in each batch of a period, ``[K, C]``; None where none are found, or the table is too large."""
    columns = [*table.columns, [*range(len(table.base_C))]]
    bits = max(len(table.base_C) + len(table.rows), sum(map(_field, columns)))
    if bits > _WORD_BITS or max(map(len, table.rows)) > _LONGEST_ROW:
        return None
    tries = product((_NARROW, _WIDE) if table.period <= _LONGEST_WIDE else (_NARROW,), (False, True))
    found = (_Beam(table, columns, making).run(width, one_over) for pairs, one_over in tries for width, making in pairs)
    return next((extra_KC for extra_KC in found if extra_KC is not None), None)


def _field(column: list[int]) -> int:
    """Bits of its count and of a guard, which is 0 in every count."""
    return len(column).bit_length() + 1


class _Row(NamedTuple):
    """The subsets of its cells that can be its extra rows in some batch."""

    extra_O: Ints
    """A bit for each cell, and one for the row where it has more than always."""
    columns_O: Ints
    """What each column gets of it."""
    mask: int
    """All of its bits."""
    most: int
    """What each column can get of it at most."""


class _States(NamedTuple):
    up_S: Ints
    """A bit for each cell and row that is rounded up."""
    columns_S: Ints
    """A field for each column: whether it is."""


class _Beam:
    def __init__(self, table: Table, columns: list[list[int]], making: int) -> None:
        self.table, self.cells, self.making = table, len(table.base_C), making
        first = self.cells + len(table.rows)
        widths = np.array([_field(column) for column in columns])
        self.bit_Q = 1 << np.arange(first)
        self.field_D = 1 << (np.cumsum(widths) - widths)
        self.guard = int((self.field_D << (widths - 1)).sum())
        self.always = int(np.array([*table.always_Q[first:], table.extra]) @ self.field_D)
        fraction_Q = np.array([*table.fraction_Q, 0])
        self.sometimes = int((fraction_Q[first:] > 0) @ self.field_D)
        """A 1 in the field of each column that has more than always in some batches."""
        in_column_CD = np.array([[c in column for column in columns] for c in range(self.cells)])
        self.columns_C = in_column_CD @ self.field_D * (fraction_Q[: self.cells] > 0)
        """The columns of each cell that can have an extra row."""
        self.rows = self._rows()

        due_KQ = np.arange(table.period + 1)[:, None] * fraction_Q
        grown_KQ, rest_KQ = np.diff(due_KQ // table.period, axis=0), due_KQ[1:] % table.period
        whole_KQ = rest_KQ == 0
        self.grown_K, self.whole_K = ((each[:, :first] @ self.bit_Q).tolist() for each in (grown_KQ, whole_KQ))
        self.columns_grown_K, self.columns_whole_K = (
            (each[:, first:] @ self.field_D).tolist() for each in (grown_KQ, whole_KQ)
        )
        self.distance_KQ = table.period - 2 * rest_KQ[:, :first]
        """What rounding up adds to the sum of the squares of the distances to the exact shares."""

    def _rows(self) -> list[_Row]:
        """Rows; small ones are taken together, which is faster."""
        rows: list[_Row] = []
        for row in map(self._row, range(len(self.table.rows))):
            most = _TOGETHER * (self.making if len(rows) == 1 else 1)
            if rows and len(rows[-1].extra_O) * len(row.extra_O) <= most:
                rows[-1] = self._together(rows[-1], row)
            else:
                rows.append(row)
        return rows

    def _row(self, r: int) -> _Row:
        table, line = self.table, self.cells + r
        some = [c for c in table.rows[r] if table.fraction_Q[c]]
        subsets = np.arange(1 << len(some))[:, None] >> np.arange(len(some)) & 1
        more = subsets.sum(axis=1) - table.always_Q[line]
        possible = (more == 0) | (more == (table.fraction_Q[line] > 0))
        subsets, more = subsets[possible], more[possible]
        bits = self.bit_Q[[*table.rows[r], line]].sum()
        extra_O = subsets @ self.bit_Q[some] + more * self.bit_Q[line]
        return _Row(extra_O, subsets @ self.columns_C[some], int(bits), int(self.columns_C[some].sum()))

    def _together(self, one: _Row, other: _Row) -> _Row:
        columns_O = (one.columns_O[:, None] + other.columns_O).ravel()
        most = one.most + other.most
        rest = int(self.columns_C.sum()) - most
        fits = self._within(columns_O, rest, self.always, self.always + self.sometimes)
        extra_O = (one.extra_O[:, None] | other.extra_O).ravel()
        return _Row(extra_O[fits], columns_O[fits], one.mask | other.mask, most)

    def _within(self, columns: Ints, rest: int, least: Ints | int, most: Ints | int) -> Mask:
        """Whether no column has more than ``most``, and with ``rest`` can have ``least``."""
        spare = ((most | self.guard) - columns) & ((columns + rest | self.guard) - least)
        within: Mask = spare & self.guard == self.guard
        return within

    def run(self, width: int, one_over: bool) -> Ints | None:
        """The extra rows of a schedule, ``[K, C]``.

        Args:
            one_over: whether a cell or line whose n x is whole may have one row more.
        """
        states = _States(np.zeros(1, np.int64), np.zeros(1, np.int64))
        steps: list[tuple[Ints, Ints]] = []
        for k in range(self.table.period):
            closes = k == self.table.period - 1 or not one_over
            from_P, extra_P, columns_P = self._batches(states, k, self.making * width, closes)
            up_P, chosen = np.unique(states.up_S[from_P] ^ extra_P ^ self.grown_K[k], return_index=True)
            if not len(chosen):
                return None
            if len(chosen) > width:
                bits = up_P[:, None] >> np.arange(len(self.bit_Q)) & 1
                nearest = np.argsort(bits @ self.distance_KQ[k], kind="stable")[:width]
                up_P, chosen = up_P[nearest], chosen[nearest]
            from_S = from_P[chosen]
            columns_S = states.columns_S[from_S] ^ (columns_P[chosen] - self.always) ^ self.columns_grown_K[k]
            states = _States(up_P, columns_S)
            steps.append((from_S, extra_P[chosen]))
        return self._traced(steps)

    def _traced(self, steps: list[tuple[Ints, Ints]]) -> Ints:
        """The way to the one state after the last batch."""
        state, extra_K = 0, np.zeros(len(steps), np.int64)
        for k in reversed(range(len(steps))):
            from_S, extra_S = steps[k]
            extra_K[k], state = extra_S[state], from_S[state]
        extra_KC: Ints = extra_K[:, None] >> np.arange(self.cells) & 1
        return extra_KC

    def _batches(self, states: _States, k: int, most: int, closes: bool) -> tuple[Ints, Ints, Ints]:
        """Batches that may follow a state: which state, the extra rows, and what columns have of them.

        Args:
            closes: whether what is whole after the batch has no row over.
        """
        up_S, columns_S = states
        grown, columns_grown = self.grown_K[k], self.columns_grown_K[k]
        must_S, fixed_S = grown & ~up_S, up_S ^ grown | (self.whole_K[k] if closes else 0)
        columns_must_S = columns_grown & ~columns_S
        columns_fixed_S = columns_S ^ columns_grown | (self.columns_whole_K[k] if closes else 0)
        least_S = self.always + columns_must_S
        most_S = self.always + (columns_must_S | self.sometimes & ~columns_fixed_S)
        from_P = np.arange(len(up_S))
        extra_P = columns_P = np.zeros(len(up_S), np.int64)
        rest = int(self.columns_C.sum())
        for row in self.rows:
            rest -= row.most
            columns_PO = columns_P[:, None] + row.columns_O
            wrong_PO = (row.extra_O ^ must_S[from_P, None]) & (fixed_S[from_P, None] & row.mask)
            p, o = np.nonzero((wrong_PO == 0) & self._within(columns_PO, rest, least_S[from_P, None], most_S[from_P, None]))
            if len(p) > most:
                thin = np.arange(most) * len(p) // most
                p, o = p[thin], o[thin]
            from_P, extra_P, columns_P = from_P[p], extra_P[p] | row.extra_O[o], columns_PO[p, o]
        return from_P, extra_P, columns_P

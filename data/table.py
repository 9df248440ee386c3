"""A mix as a two-way table: cells, each in one row and one column, and what a batch is to have of each of them.

Legend: C cells, K batches in the period after which a schedule repeats, Q = cells, then rows, then columns.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import floor, lcm

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Table:
    """Shares of a batch in whole rows and, beyond these, in units of 1 / K row: in whole numbers."""

    def __init__(self, shares: Sequence[Fraction], size: int, lines: Sequence[tuple[str, str]]) -> None:
        """
        Args:
            size: rows in a batch.
            lines: the language and the domain that each cell counts as.
        """
        names = [list(dict.fromkeys(line[kind] for line in lines)) for kind in (0, 1)]
        kinds = [[[c for c, line in enumerate(lines) if line[kind] == name] for name in names[kind]] for kind in (0, 1)]
        self.rows, self.columns = sorted(kinds, key=lambda of_kind: max(map(len, of_kind)))
        """The cells of each line; the kind whose lines have fewer of them are the rows."""
        self.members_Q = [*([c] for c in range(len(lines))), *self.rows, *self.columns]
        exact_C = [share * size for share in shares]
        exact_Q = [sum((exact_C[c] for c in members), Fraction()) for members in self.members_Q]
        self.period = lcm(*(x.denominator for x in exact_C))
        self.base_C = [floor(x) for x in exact_C]
        self.extra = size - sum(self.base_C)
        """Extra rows of a batch: those beyond the whole ones of its cells."""
        self.always_Q = [
            floor(x) - sum(self.base_C[c] for c in members) for x, members in zip(exact_Q, self.members_Q, strict=True)
        ]
        """Extra rows that a line has in every batch."""
        self.fraction_Q = [int((x - floor(x)) * self.period) for x in exact_Q]
        """Beyond those: units in a batch, and as many rows in a period."""

    def furthest(self, extra_KC: Ints) -> Fraction:
        """Rows that the first n batches are off the share of any cell or line, for the n where that is most."""
        had_KC = np.cumsum(extra_KC, axis=0)
        batches = np.arange(1, len(extra_KC) + 1)
        most = 0
        for members, always, fraction in zip(self.members_Q, self.always_Q, self.fraction_Q, strict=True):
            off_K = had_KC[:, members].sum(axis=1) * self.period - batches * (always * self.period + fraction)
            most = max(most, int(np.abs(off_K).max()))
        return Fraction(most, self.period)

"""How many rows of each cell each global batch has, so that the mix is met in every batch and over all batches.

A cell lies in one line of each of two kinds, its language and its domain. A batch is a table of whole numbers, and for cells
and lines alike there are two bounds:

- *In every batch* each has floor(x) or ceil(x) rows, where x is its share of a batch. That always holds: it is a controlled
  rounding of a two-way table (Cox 1987), found as a flow.
- *The first n batches together* have floor(n x) or ceil(n x), for every n. Fair scheduling of periodic tasks (Baruah, Cohen,
  Plaxton, Varvel, "Proportionate progress", Algorithmica 1996) gives that for cells alone. For both kinds of lines at once it
  is the scheduling of a crossbar switch, where it is not known whether a schedule always exists (Giles and Hajek, "Scheduling
  multirate periodic traffic in a packet switch", 1997). So it is searched for: batch after batch, the most urgent first, and
  from a dead end some batches back with ties broken otherwise, and given up soon. Where it was, the sum of the first n batches
  of some cell or line is off by a row or somewhat more, and the log says by how much.

Legend: C cells, K batches in the period after which the pattern repeats, Q = cells and lines.
"""

import logging
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import ceil, floor, lcm

import numpy as np
import numpy.typing as npt
import xxhash

from data.flow import SINK, SOURCE, Arc, cheapest_flow

log = logging.getLogger(__name__)

# Batches that the search may make again, about a tenth of a second: each start of a worker waits for it.
_REMADE = 300
_TIE = 17


def batch_counts(
    shares: Sequence[Fraction], global_batch_size: int, lines: Sequence[tuple[str, str]] | None = None
) -> npt.NDArray[np.int64]:
    """Rows of each cell in each batch of one period, ``[K, C]``.

    Args:
        shares: of the cells; they sum to 1.
        lines: the language and the domain that each cell counts as; None where nothing but cells counts.
    """
    counted_as = lines or [("", str(cell)) for cell in range(len(shares))]
    return _batch_counts(tuple(shares), global_batch_size, tuple(counted_as))


@lru_cache(maxsize=16)
def _batch_counts(shares: tuple[Fraction, ...], size: int, lines: tuple[tuple[str, str], ...]) -> npt.NDArray[np.int64]:
    table = _Table(shares, size, lines)
    counts_KC = np.array(table.schedule(), dtype=np.int64)
    counts_KC.setflags(write=False)
    if table.furthest >= 1:
        log.warning(
            "every batch of %d rows has the mix, rounded, but the first n batches together are up to %.2f rows off it",
            *(size, float(table.furthest)),
        )
    return counts_KC


class _Table:
    """Everything is counted in units of 1 / K row, so in whole numbers."""

    def __init__(self, shares: Sequence[Fraction], size: int, lines: Sequence[tuple[str, str]]) -> None:
        exact_C = [share * size for share in shares]
        self.period = lcm(*(x.denominator for x in exact_C))
        rows, columns = (list(dict.fromkeys(line[kind] for line in lines)) for kind in (0, 1))
        members_Q = [
            *([c] for c in range(len(lines))),
            *([c for c, line in enumerate(lines) if line[0] == row] for row in rows),
            *([c for c, line in enumerate(lines) if line[1] == column] for column in columns),
        ]
        first_column = 2 + len(rows)
        self.ends_Q = [
            *((2 + rows.index(row), first_column + columns.index(column)) for row, column in lines),
            *((SOURCE, 2 + r) for r in range(len(rows))),
            *((first_column + c, SINK) for c in range(len(columns))),
        ]
        self.base_C = [floor(x) for x in exact_C]
        exact_Q = [sum(exact_C[c] for c in members) for members in members_Q]
        self.fraction_Q = [int((x - floor(x)) * self.period) for x in exact_Q]
        # What a line has in every batch beyond the whole rows of its cells.
        self.always_Q = [floor(x) - sum(self.base_C[c] for c in members) for x, members in zip(exact_Q, members_Q, strict=True)]
        self.extra = size - sum(self.base_C)
        self.furthest = Fraction()
        """Rows that the first n batches of the schedule are off the share of any cell or line at most."""

    def schedule(self) -> list[list[int]]:
        cells = len(self.base_C)
        ahead_KQ = [[0] * len(self.ends_Q)]
        batches: list[list[int]] = []
        salts = [0] * self.period
        left = _REMADE
        furthest = back = tries = 0
        while len(batches) < self.period:
            k = len(batches)
            extra_Q, after_Q = self._batch(ahead_KQ[k], k, salts[k])
            if left and max(map(abs, after_Q)) >= self.period:
                furthest, back = max(furthest, k), 1 if k > furthest else 2 * back or 1
                tries += 1
                start = max(0, k - back, k + 1 - left)
                left -= k + 1 - start
                salts[start : k + 1] = [tries] * (k + 1 - start)
                del batches[start:], ahead_KQ[start + 1 :]
                continue
            ahead_KQ.append(after_Q)
            batches.append([base + extra for base, extra in zip(self.base_C, extra_Q[:cells], strict=True)])
        assert not any(ahead_KQ[-1]), "the pattern does not close"
        self.furthest = Fraction(max(abs(ahead) for ahead_Q in ahead_KQ for ahead in ahead_Q), self.period)
        return batches

    def _batch(self, ahead_Q: list[int], k: int, salt: int) -> tuple[list[int], list[int]]:
        """Extra rows of batch ``k``, and how far each cell and line is ahead of its share after it."""
        arcs = [
            Arc(*ends, self._steps(ahead_Q[q], self.fraction_Q[q], self.always_Q[q], _noise(salt, k, q)))
            for q, ends in enumerate(self.ends_Q)
        ]
        extra_Q = cheapest_flow(arcs, self.extra)
        given = zip(ahead_Q, extra_Q, self.always_Q, self.fraction_Q, strict=True)
        return extra_Q, [ahead + (extra - always) * self.period - fraction for ahead, extra, always, fraction in given]

    def _steps(self, ahead: int, fraction: int, always: int, noise: int) -> list[tuple[int, int]]:
        """Costs of the rows that a batch must have, and of the one that it may have: the sooner it is due, the cheaper."""
        violated = 100 * self.period * len(self.ends_Q)
        steps = [(-violated * 100 * len(self.ends_Q), always)]
        if fraction:
            due = ceil(Fraction(self.period + ahead, fraction))
            cost = 4 * min(due, 2 * self.period) + noise
            without = ahead - fraction
            # Without it too far behind, or with it too far ahead.
            cost += -violated if without <= -self.period else violated if without >= 0 else 0
            steps.append((cost, 1))
        return steps


def _noise(*salt: int) -> int:
    return xxhash.xxh3_64_intdigest(repr(salt).encode()) % (2 * _TIE) - _TIE if salt[0] else 0

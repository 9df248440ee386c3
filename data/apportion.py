"""How many rows of each cell each global batch has, so that the mix is met in every batch and over all batches.

A cell lies in one line of each of two kinds, its language and its domain. For cells and lines alike there are two bounds:

- *In every batch* each has floor(x) or ceil(x) rows, where x is its share of a batch. That can always be: it is a controlled
  rounding of a two-way table (Cox 1987).
- *The first n batches together* have floor(n x) or ceil(n x), for every n. Fair scheduling of periodic tasks (Baruah, Cohen,
  Plaxton, Varvel, "Proportionate progress", Algorithmica 1996) gives that for cells alone. For both kinds of lines at once it
  is like the scheduling of a crossbar switch (Giles and Hajek, "Scheduling multirate periodic traffic in a packet switch",
  1997), and a few tables have no such schedule (the tests have one). So it is searched for: ``data/beam.py``. A schedule that
  it finds is off by a whole row at most.

Where it finds none, batches are made one by one, the most urgent first. They keep the first bound; the second may be off by
more than a row, and the log says by how much. That is so for tables too large to search, and it cannot be ruled out for those
of many cells that are searched.

Legend: C cells, K batches in the period after which the pattern repeats, Q = cells and lines.
"""

import logging
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import ceil
from pathlib import Path

import numpy as np

from data.beam import search
from data.flow import SINK, SOURCE, Arc, cheapest_flow
from data.patterns import kept, pattern_name
from data.table import Ints, Table

log = logging.getLogger(__name__)


def batch_counts(
    shares: Sequence[Fraction],
    global_batch_size: int,
    lines: Sequence[tuple[str, str]] | None = None,
    patterns: Path | None = None,
) -> Ints:
    """Rows of each cell in each batch of one period, ``[K, C]``.

    Args:
        shares: of the cells; they sum to 1.
        lines: the language and the domain that each cell counts as; None where nothing but cells counts.
        patterns: a folder where what has been found is kept for other processes.
    """
    counted_as = lines or [("", str(cell)) for cell in range(len(shares))]
    return _batch_counts(tuple(shares), global_batch_size, tuple(counted_as), patterns)


@lru_cache(maxsize=16)
def _batch_counts(shares: tuple[Fraction, ...], size: int, lines: tuple[tuple[str, str], ...], patterns: Path | None) -> Ints:
    table = Table(shares, size, lines)
    if patterns is None:
        extra_KC = _found(table)
    else:
        shape_KC = (table.period, len(shares))
        extra_KC = kept(patterns / pattern_name(shares, size, lines), shape_KC, lambda: _found(table))
    if (furthest := table.furthest(extra_KC)) > 1:
        log.warning(
            "every batch of %d rows has the mix, rounded, but the first n batches together are up to %.2f rows off it",
            *(size, float(furthest)),
        )
    counts_KC: Ints = np.array(table.base_C) + extra_KC
    counts_KC.setflags(write=False)
    return counts_KC


def _found(table: Table) -> Ints:
    extra_KC = search(table)
    return most_urgent_first(table) if extra_KC is None else extra_KC


def most_urgent_first(table: Table) -> Ints:
    """Extra rows of each cell in each batch of a period, ``[K, C]``.

    The pattern closes. With m batches to come, what is left of a cell's or line's extra rows in the period is spread over them,
    between 0 and 1 for each, is a table with the margins of a batch, so it can be rounded (Cox 1987): a whole batch that gives
    none to what has none left, and one to what has m left. Then the same holds with m - 1 to come, and in the end none are left
    (the balanced colouring of bipartite multigraphs; de Werra 1971).
    """
    cells = len(table.base_C)
    ends_Q = _ends(table)
    left_Q = list(table.fraction_Q)
    batches: list[list[int]] = []
    for k in range(table.period):
        given = zip(ends_Q, left_Q, table.fraction_Q, table.always_Q, strict=True)
        arcs = [Arc(*ends, _steps(table, k, left, fraction, always)) for ends, left, fraction, always in given]
        extra_Q = cheapest_flow(arcs, table.extra)
        left_Q = [left - (extra - always) for left, extra, always in zip(left_Q, extra_Q, table.always_Q, strict=True)]
        batches.append(extra_Q[:cells])
    return np.array(batches, dtype=np.int64)


def _ends(table: Table) -> list[tuple[int, int]]:
    """Of the arcs: rows of the table to columns, source to rows, columns to sink."""
    row_nodes = range(2, 2 + len(table.rows))
    column_nodes = range(row_nodes.stop, row_nodes.stop + len(table.columns))
    tails = {c: node for node, members in zip(row_nodes, table.rows, strict=True) for c in members}
    heads = {c: node for node, members in zip(column_nodes, table.columns, strict=True) for c in members}
    return [
        *((tails[c], heads[c]) for c in range(len(table.base_C))),
        *((SOURCE, node) for node in row_nodes),
        *((node, SINK) for node in column_nodes),
    ]


def _steps(table: Table, k: int, left: int, fraction: int, always: int) -> list[tuple[int, int]]:
    """Costs of the rows that batch ``k`` must have, and of the one that it may have: the sooner it is due, the cheaper."""
    violated = 100 * table.period * len(table.members_Q)
    to_come = table.period - k
    steps = [(-violated * 100 * len(table.members_Q), always + (left == to_come))]
    if 0 < left < to_come:
        # How far it is ahead of its share, in units, before this batch.
        ahead = (fraction - left) * table.period - k * fraction
        cost = 4 * min(ceil(Fraction(table.period + ahead, fraction)), 2 * table.period)
        without = ahead - fraction
        # Without it too far behind, or with it too far ahead.
        cost += -violated if without <= -table.period else violated if without >= 0 else 0
        steps.append((cost, 1))
    return steps

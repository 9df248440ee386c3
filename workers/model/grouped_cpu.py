"""Grouped matrix products in half precision on a CPU, in few different shapes.

oneDNN compiles a kernel for each new shape of a product, which takes 2 to 3 ms where the product itself takes 0.3 (measured
with AMX). The sizes of experts' groups are new at every step. So here every product has a whole number of blocks of rows.

Legend: N rows sorted by group, E groups, I and O a matrix's inputs and outputs.
"""

from collections.abc import Iterator

import torch

BLOCK = 32
"""Rows. A tile of AMX has 16 and multiplies over 32 numbers of two bytes."""


def grouped_rows(x_NI: torch.Tensor, matrices_EIO: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """[N, O]: each group's rows times its matrix."""
    N = x_NI.shape[0]
    y_NO = x_NI.new_empty(N, matrices_EIO.shape[2])
    for group, start, end, stop in _blocks(ends_E):
        if stop <= N:
            # Rows of the groups that come next are in the product too; their own products overwrite them.
            torch.mm(x_NI[start:stop], matrices_EIO[group], out=y_NO[start:stop])
        else:
            y_NO[start:end] = (_padded(x_NI[start:end], stop - start) @ matrices_EIO[group])[: end - start]
    return y_NO


def grouped_outer(y_NO: torch.Tensor, x_NI: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """[E, O, I]: the sum over each group's rows of y x^T; zero for a group of none."""
    sums_EOI = y_NO.new_empty(len(ends_E), y_NO.shape[1], x_NI.shape[1])
    filled = set()
    for group, start, end, stop in _blocks(ends_E):
        y, x = y_NO[start:stop], x_NI[start:stop]
        # Rows beyond the group are zero in both: 0 times a neighbour that overflowed would be no number.
        if stop > end:
            y, x = (_padded(rows[start:end], stop - start) for rows in (y_NO, x_NI))
        torch.mm(y.t(), x, out=sums_EOI[group])
        filled.add(group)
    for group in set(range(len(ends_E))) - filled:
        sums_EOI[group].zero_()
    return sums_EOI


def _blocks(ends_E: torch.Tensor) -> Iterator[tuple[int, int, int, int]]:
    """Of each group that has rows: its number, first row, end, and the end of its last block."""
    start = 0
    for group, end in enumerate(ends_E.tolist()):
        if end > start:
            yield group, start, end, start + -(-(end - start) // BLOCK) * BLOCK
        start = end


def _padded(rows: torch.Tensor, count: int) -> torch.Tensor:
    padded = rows.new_empty(count, rows.shape[1])
    padded[: len(rows)] = rows
    padded[len(rows) :] = 0
    return padded

"""Which rows make up optimizer step n: a pure function of (manifest, seed, n), whatever the number of workers.

Two choices, both without state:

- *How many rows of each cell.* Every batch has a whole number of rows of each cell, of each language and of each domain within
  one of its share, and so have the first n batches together: see ``data/apportion.py``. The pattern repeats.
- *Which rows.* The u-th row that a cell ever gives is ``permutation(u mod rows)`` in epoch ``u // rows``: a keyed Feistel
  network (Luby and Rackoff 1988) walked until it falls inside the cell (cycle walking, Black and Rogaway 2002).

Legend: G rows in a global batch, C cells, K batches in a period.
"""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import xxhash

from data.apportion import batch_counts
from data.errors import NotEnoughData, ShardError
from data.files import U64, key64, mix64
from data.manifest import Manifest
from data.mixture import exact_shares
from data.table import Ints

_ROUNDS = 6


class SampleOrder:
    """The order of the training rows of one segment of the curriculum (of all of them, where there is none)."""

    def __init__(
        self,
        manifest: Manifest,
        seed: int,
        global_batch_size: int,
        segment: int = -1,
        shares: Sequence[Fraction] = (),
        warmup_rows: int = 0,
        patterns: Path | None = None,
    ) -> None:
        """
        Args:
            shares: of the cells in this segment, where they are not those of the manifest; 0 leaves a cell out.
            warmup_rows: the first rows, which smaller steps than ``global_batch_size`` take.
            patterns: a folder where the pattern that was found is kept for other processes.

        Raises:
            NotEnoughData: a cell with a weight has no training rows.
        """
        self.seed = seed
        self.global_batch_size = global_batch_size
        self._cells = manifest.cell_rows("train", segment)
        self.shares = list(shares) or exact_shares([cell.weight for cell in manifest.cells])
        for cell, share, rows in zip(manifest.cells, self.shares, self._cells, strict=True):
            if share and not rows:
                raise NotEnoughData(f"cell {cell.name} has no training rows", pointer="/data_pipeline/sources")
        self._counts_KC = batch_counts(self.shares, global_batch_size, [cell.lines for cell in manifest.cells], patterns)
        self._before_KC = np.cumsum(self._counts_KC, axis=0) - self._counts_KC
        self.warmup_rows = warmup_rows
        self._warmed_C = self._had(warmup_rows)
        mixture = json.dumps([[cell.name, str(share)] for cell, share in zip(manifest.cells, self.shares, strict=True)])
        mixture += f" after {warmup_rows}" if warmup_rows else ""
        self._state: dict[str, int | str] = {
            "seed": seed,
            "global_batch_size": global_batch_size,
            "mixture": xxhash.xxh3_64_hexdigest(mixture.encode() + self._counts_KC.tobytes()),
            "manifest": manifest.hash,
        }

    def batch(self, step: int) -> list[int]:
        """Numbers of the ``global_batch_size`` training rows of optimizer step ``step`` (from 0), in slot order.

        Cells are spread evenly over the slots, so a micro-batch, which is a run of slots, has nearly the mix of the whole.
        """
        return self._batch(step, np.zeros_like(self._warmed_C))

    def _batch(self, step: int, drawn_C: Ints) -> list[int]:
        """Batch ``step`` of those that begin where ``drawn_C`` rows of each cell are drawn already."""
        slots = self._slots(step)
        counts_C = np.bincount(slots, minlength=len(self._cells)).tolist()
        first_C = (drawn_C + self._had(step * self.global_batch_size)).tolist()
        rows_C = [iter(self._draw(cell, first_C[cell], count)) for cell, count in enumerate(counts_C)]
        return [self._cells[cell].start + next(rows_C[cell]) for cell in slots]

    def _slots(self, step: int) -> list[int]:
        """The cell of each slot of a batch."""
        counts = self._counts_KC[step % len(self._counts_KC)].tolist()
        return [cell for _, cell in sorted(((j + 0.5) / n, cell) for cell, n in enumerate(counts) for j in range(n))]

    def _had(self, rows: int) -> Ints:
        """Rows of each cell among the first ones, batches end to end."""
        step, of_next = divmod(rows, self.global_batch_size)
        periods, at = divmod(step, len(self._counts_KC))
        had_C: Ints = periods * self._counts_KC.sum(axis=0) + self._before_KC[at]
        return had_C + np.bincount(self._slots(step)[:of_next], minlength=len(self._cells)) if of_next else had_C

    def take(self, first: int, count: int) -> list[int]:
        """Rows ``first .. first + count`` of the segment, all of the batch warm-up or all after it.

        The steps of the warm-up are cut out of batches laid end to end. After it the pattern begins anew, so that every
        step is a whole batch of it; of no cell is a row left out or drawn twice.
        """
        warmed = first >= self.warmup_rows
        drawn_C = self._warmed_C if warmed else np.zeros_like(self._warmed_C)
        step, skipped = divmod(first - (self.warmup_rows if warmed else 0), self.global_batch_size)
        rows: list[int] = []
        while len(rows) < skipped + count:
            rows += self._batch(step, drawn_C)
            step += 1
        return rows[skipped : skipped + count]

    def _draw(self, cell: int, first: int, count: int) -> list[int]:
        """Rows (from 0 within the cell) of its uses ``first .. first + count``, over the border of an epoch where needed."""
        size = len(self._cells[cell])
        drawn: list[int] = []
        while count:
            epoch, at = divmod(first, size)
            take = min(count, size - at)
            key = key64("order", self.seed, cell, epoch)
            drawn.extend(permute(np.arange(at, at + take, dtype=np.uint64), size, key).tolist())
            first, count = first + take, count - take
        return drawn

    def state(self) -> dict[str, int | str]:
        """What, with the step, fixes the order; kept in every checkpoint."""
        return dict(self._state)

    def require(self, state: dict[str, int | str]) -> None:
        """
        Raises:
            ShardError: ``state``, from a checkpoint, describes another order than this one.
        """
        require_same_order(state, self._state)


def require_same_order(then: dict[str, int | str], now: dict[str, int | str]) -> None:
    """
    Raises:
        ShardError: ``then``, from a checkpoint, describes another order than ``now``.
    """
    if differing := [name for name, value in now.items() if then.get(name) != value]:
        says = ", ".join(f"{name} {then.get(name)} then, {now[name]} now" for name in differing)
        raise ShardError(f"the checkpoint was made with another order of samples: {says}")


def permute(index: U64, size: int, key: np.uint64) -> U64:
    """Where a keyed random permutation of ``range(size)`` sends each index."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    round_keys = mix64(key + np.arange(1, _ROUNDS + 1, dtype=np.uint64))

    def network(x: U64) -> U64:
        left, right = x >> half, x & low
        for round_key in round_keys:
            left, right = right, left ^ (mix64(right ^ round_key) & low)
        return (left << half) | right

    out = network(index)
    while (outside := out >= size).any():
        out[outside] = network(out[outside])
    return out

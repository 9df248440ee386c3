"""Which rows make up optimizer step n: a pure function of (manifest, seed, n), whatever the number of workers.

Two choices, both without state:

- *How many rows of each cell.* Every batch has a whole number of rows of each cell within one of ``G * share``, and so have the
  first n batches together, for every n. That is fair scheduling of periodic tasks (Baruah, Cohen, Plaxton, Varvel,
  "Proportionate progress", Algorithmica 1996): a batch is a time slot, a cell is a task whose weight is the fractional part
  of ``G * share``, and their algorithm PF rounds up the most urgent ones. The pattern repeats, so one period is computed.
- *Which rows.* The u-th row that a cell ever gives is ``permutation(u mod rows)`` in epoch ``u // rows``: a keyed Feistel
  network (Luby and Rackoff 1988) walked until it falls inside the cell (cycle walking, Black and Rogaway 2002).

Legend: G rows in a global batch, C cells, K batches in a period.
"""

import json
from fractions import Fraction
from functools import cmp_to_key
from math import floor, lcm

import numpy as np
import numpy.typing as npt
import xxhash

from data.errors import NotEnoughData, ShardError
from data.files import U64, key64, mix64
from data.manifest import Manifest

# Shares are multiples of 1 / denominator; finer weights than this are rounded to it.
_MAX_DENOMINATOR = 10_000
_ROUNDS = 6


class SampleOrder:
    """The order of the training rows of one segment of the curriculum (of all of them, where there is none)."""

    def __init__(self, manifest: Manifest, seed: int, global_batch_size: int, segment: int = -1) -> None:
        """
        Raises:
            NotEnoughData: a cell with a weight has no training rows.
        """
        self.seed = seed
        self.global_batch_size = global_batch_size
        self._cells = manifest.cell_rows("train", segment)
        for cell, rows in zip(manifest.cells, self._cells, strict=True):
            if not rows:
                raise NotEnoughData(f"cell {cell.name} has no training rows", pointer="/data_pipeline/sources")
        self.shares = shares([cell.weight for cell in manifest.cells])
        self._counts_KC = batch_counts(self.shares, global_batch_size)
        self._before_KC = np.cumsum(self._counts_KC, axis=0) - self._counts_KC
        mixture = json.dumps([[cell.name, str(share)] for cell, share in zip(manifest.cells, self.shares, strict=True)])
        self._state: dict[str, int | str] = {
            "seed": seed,
            "global_batch_size": global_batch_size,
            "mixture": xxhash.xxh3_64_hexdigest(mixture.encode()),
            "manifest": manifest.hash,
        }

    def batch(self, step: int) -> list[int]:
        """Numbers of the ``global_batch_size`` training rows of optimizer step ``step`` (from 0), in slot order.

        Cells are spread evenly over the slots, so a micro-batch, which is a run of slots, has nearly the mix of the whole.
        """
        period, at = divmod(step, len(self._counts_KC))
        rows: list[int] = []
        places: list[tuple[float, int]] = []
        for cell, members in enumerate(self._cells):
            count = int(self._counts_KC[at, cell])
            first = period * int(self._counts_KC[:, cell].sum()) + int(self._before_KC[at, cell])
            rows.extend(members.start + row for row in self._draw(cell, first, count))
            places.extend(((j + 0.5) / count, cell) for j in range(count))
        order = sorted(range(len(rows)), key=places.__getitem__)
        return [rows[i] for i in order]

    def take(self, first: int, count: int) -> list[int]:
        """Rows ``first .. first + count`` of all batches end to end, for batches that are smaller than the global one."""
        step, skipped = divmod(first, self.global_batch_size)
        rows: list[int] = []
        while len(rows) < skipped + count:
            rows += self.batch(step)
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
        differing = [name for name, value in self._state.items() if state.get(name) != value]
        if differing:
            says = ", ".join(f"{name} {state.get(name)} then, {self._state[name]} now" for name in differing)
            raise ShardError(f"the checkpoint was made with another order of samples: {says}")


def shares(weights: list[float]) -> list[Fraction]:
    """Weights as exact fractions that sum to 1.

    0.45, 0.35, 0.2 become 9/20, 7/20, 4/20. Weights whose common denominator is over 10,000 are rounded to multiples of
    1/10,000 by largest remainder, each at least one of them.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    exact = [weight / sum(exact) for weight in exact]
    if lcm(*(weight.denominator for weight in exact)) <= _MAX_DENOMINATOR:
        return exact
    parts = [max(1, floor(weight * _MAX_DENOMINATOR)) for weight in exact]
    by_remainder = sorted(range(len(exact)), key=lambda c: parts[c] - exact[c] * _MAX_DENOMINATOR)
    for c in by_remainder[: max(0, _MAX_DENOMINATOR - sum(parts))]:
        parts[c] += 1
    return [Fraction(part, sum(parts)) for part in parts]


def batch_counts(cell_shares: list[Fraction], global_batch_size: int) -> npt.NDArray[np.int64]:
    """Rows of each cell in each batch of one period, [K, C].

    With x = G * share: every batch has floor(x) or ceil(x), every first n batches together floor(n x) or ceil(n x).
    """
    exact = [share * global_batch_size for share in cell_shares]
    period = lcm(*(x.denominator for x in exact))
    base = [floor(x) for x in exact]
    # Extra rows of each cell in one period, beyond ``base`` in every batch; in whole numbers because Fraction is slow.
    extras = [int((x - b) * period) for x, b in zip(exact, base, strict=True)]
    counts = np.tile(np.array(base, dtype=np.int64), (period, 1))
    given = [0] * len(exact)

    def by_urgency(a: int, b: int) -> int:
        return _compare(given[a] + 1, extras[a], given[b] + 1, extras[b], period)

    for k in range(period):
        # Extra row i of a cell may be given from batch floor((i - 1) * period / extras) on.
        eligible = [c for c, e in enumerate(extras) if e and given[c] * period // e <= k]
        for c in sorted(eligible, key=cmp_to_key(by_urgency))[: sum(extras) // period]:
            counts[k, c] += 1
            given[c] += 1
    return counts


def _compare(i: int, e: int, j: int, f: int, period: int) -> int:
    """Negative if extra row i of a cell with e a period is more urgent than extra row j of a cell with f.

    The earlier deadline is; of equal ones, that whose next row's window overlaps its own; if both do, their next rows decide.
    """
    while (i, e) != (j, f):
        ours, theirs = -(-i * period // e), -(-j * period // f)
        free, also_free = i * period % e == 0, j * period % f == 0
        if ours != theirs or free != also_free:
            return ours - theirs or free - also_free
        if free:
            break
        i, j = i + 1, j + 1
    return 0


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

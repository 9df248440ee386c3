"""Length buckets: which rows each micro-batch reads where each document has rows of its own and rows have several lengths.

A micro-batch holds rows of one bucket, and as many tokens whichever it is: of rows half as long twice as many. So a short
document is padded to the next bucket's length, not to the longest, and memory and the tokens of a step stay as planned.

Micro-batch n of the run, counted through all steps, has the bucket that a tree of two-way choices gives it, each as even as
Bresenham's line ("Algorithm for computer control of a digital plotter", 1965). So after every n each of up to four buckets has
its exact share of the micro-batches within one, however rare it is, and no table is needed. A bucket's share is what its rows
hold of each cell, weighed by the cell's share of the mixture; within a bucket cells have their shares of that, so that all rows
of a cell are read equally often whatever their length. Only there is it in thousandths: a cell with less than one of a bucket
has one. The mixture is met by every bucket's own mix within one row in each of its micro-batches, and by the run as a whole;
single steps stray from it by what their buckets do.

Legend: B buckets, C cells.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from data.curriculum import Curriculum
from data.manifest import Manifest
from data.mixture import exact_shares
from data.order import SampleOrder, require_same_order
from data.steps import MicroBatch, StepOrder

# Shares of cells within a bucket are multiples of its inverse.
_DENOMINATOR = 1_000


def bucket_shares(weights: Sequence[float], room_BC: Sequence[Sequence[int]]) -> list[list[Fraction]]:
    """Share of the run's tokens that is of each bucket and cell, ``[B][C]``; all sum to 1.

    Args:
        weights: of the cells, relative to each other.
        room_BC: tokens that the rows of each bucket and cell have room for; every cell has some.
    """
    shares_C = exact_shares(weights)
    whole_C = [sum(room_C[cell] for room_C in room_BC) for cell in range(len(shares_C))]
    return [
        [share * Fraction(room, whole) for share, room, whole in zip(shares_C, room_C, whole_C, strict=True)]
        for room_C in room_BC
    ]


class Turns:
    """Whose turn each of 0, 1, 2, ... is, in exact shares. Halves of the parties share turns as one party does with another."""

    def __init__(self, shares: Sequence[Fraction]) -> None:
        """
        Args:
            shares: of the parties, more than 0, relative to each other.
        """
        self._parties = len(shares)
        if self._parties > 1:
            middle = self._parties // 2
            self._left_share = sum(shares[:middle], Fraction()) / sum(shares, Fraction())
            self._left, self._right = Turns(shares[:middle]), Turns(shares[middle:])

    def before(self, n: int) -> list[int]:
        """How many of the first ``n`` turns each party has."""
        if self._parties == 1:
            return [n]
        left = self._of_left(n)
        return self._left.before(left) + self._right.before(n - left)

    def at(self, n: int) -> int:
        """Whose turn ``n`` is."""
        return next(party for party, (old, new) in enumerate(zip(self.before(n), self.before(n + 1), strict=True)) if new > old)

    def _of_left(self, n: int) -> int:
        """The share of ``n``, rounded, halves up."""
        return (2 * n * self._left_share.numerator + self._left_share.denominator) // (2 * self._left_share.denominator)


class BucketOrder:
    """The order of the training rows of a whole run; a pure function of manifest, seed and step."""

    def __init__(self, manifest: Manifest, seed: int, curriculum: Curriculum, patterns: Path | None = None) -> None:
        """
        Args:
            patterns: a folder where the patterns that were found are kept for other processes.

        Raises:
            NotEnoughData: a cell with a weight has no training rows.
        """
        self.curriculum = curriculum
        room_BC = [
            [count.rows * manifest.row_length(bucket) for count in segment.cells]
            for bucket, segment in enumerate(manifest.segments)
        ]
        shares_BC = bucket_shares([cell.weight for cell in manifest.cells], room_BC)
        self._buckets = [bucket for bucket, shares in enumerate(shares_BC) if any(shares)]
        tokens = curriculum.micro_batch_tokens
        self._sizes = [tokens // manifest.row_length(bucket) for bucket in self._buckets]
        self._orders = [
            SampleOrder(manifest, seed, size, bucket, _coarse(shares_BC[bucket]), patterns=patterns)
            for bucket, size in zip(self._buckets, self._sizes, strict=True)
        ]
        self._turns = Turns([sum(shares_BC[bucket], Fraction()) for bucket in self._buckets])
        """The bucket of each micro-batch, as an index of ``_buckets``."""
        self._state: dict[str, int | str] = {
            "seed": seed,
            "micro_batch_tokens": tokens,
            "mixture": "-".join(str(order.state()["mixture"]) for order in self._orders),
            "manifest": manifest.hash,
            "curriculum": curriculum.fingerprint(),
        }

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """The ordered list that optimizer step ``step`` (from 0) is made of, however many workers share it."""
        return [self._micro_batch(n) for n in self._numbers(step)]

    def row_lengths(self, step: int) -> list[int]:
        """Tokens in a row of each micro-batch of ``step``."""
        tokens = self.curriculum.micro_batch_tokens
        return [tokens // self._sizes[self._turns.at(n)] for n in self._numbers(step)]

    def _numbers(self, step: int) -> range:
        """Of the step's micro-batches, in the run."""
        first = self.curriculum.sizes.before(step)
        return range(first, first + self.curriculum.sizes.at(step))

    def _micro_batch(self, n: int) -> MicroBatch:
        bucket, before = self._turns.at(n), self._turns.before(n)
        rows = self._orders[bucket].batch(before[bucket])
        first = sum(turns * size for turns, size in zip(before, self._sizes, strict=True))
        return MicroBatch(rows, range(first, first + len(rows)))

    def state(self) -> dict[str, int | str]:
        """What, with the step, fixes the order; kept in every checkpoint."""
        return dict(self._state)

    def require(self, state: dict[str, int | str]) -> None:
        """
        Raises:
            ShardError: ``state``, from a checkpoint, describes another order than this one.
        """
        require_same_order(state, self._state)


def _coarse(shares: Sequence[Fraction]) -> list[Fraction]:
    """In proportion, and multiples of a thousandth; what is there keeps one."""
    some = iter(exact_shares([share for share in shares if share], _DENOMINATOR))
    return [next(some) if share else share for share in shares]


def order_of_run(
    manifest: Manifest, seed: int, curriculum: Curriculum, patterns: Path | None = None
) -> StepOrder | BucketOrder:
    """
    Args:
        patterns: a folder where the patterns that were found are kept for other processes.

    Raises:
        NotEnoughData: a cell with a weight has no training rows.
    """
    return (BucketOrder if manifest.bucketed else StepOrder)(manifest, seed, curriculum, patterns)

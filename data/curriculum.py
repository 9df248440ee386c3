"""How long the rows of each optimizer step are, and how many there are: pure functions of the step, without state.

Two courses that may run together:

- *Curriculum of sequence length* (Press et al., "Shortformer", arXiv 2012.15832; Li et al., arXiv 2108.06084): short rows
  first. Each segment has its share of the run's tokens, and ends at the first step that reaches it. A step and a
  micro-batch hold as many tokens in every segment: of rows half as long they have twice as many.
- *Batch warm-up* (Smith et al., arXiv 1711.00489; McCandlish et al., arXiv 1812.06162): the first step has ``start``
  micro-batches, and their number grows in equal increments, a step at a time, to the full one.

A micro-batch is the unit of both, and always holds as many tokens: memory stays as planned. No NumPy: specs count with it.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """Micro-batches in each optimizer step: ``start`` in the first, growing over ``warmup`` steps, then ``full``."""

    full: int
    start: int
    warmup: int

    @classmethod
    def of_run(cls, total_steps: int, full: int, start: int, fraction: float) -> "BatchSizes":
        """With a warm-up over ``fraction`` of all steps."""
        return cls(full, start, round(fraction * total_steps))

    def at(self, step: int) -> int:
        if step >= self.warmup:
            return self.full
        return self.start + (self.full - self.start) * step // self.warmup

    def before(self, step: int) -> int:
        """Micro-batches of all steps before ``step``."""
        rising, increments = min(step, self.warmup), self.full - self.start
        # Increment i of the warm-up comes with step ceil(i * warmup / increments) and lasts.
        added = sum(max(0, rising + (-i * self.warmup // increments)) for i in range(1, increments + 1))
        return self.start * rising + added + self.full * (step - rising)


def steps_for(micro_batches: int, full: int, start: int, fraction: float) -> int:
    """The fewest optimizer steps, the batch warm-up among them, that take this many micro-batches."""

    def taken(steps: int) -> int:
        return BatchSizes.of_run(steps, full, start, fraction).before(steps)

    return bisect_left(range(-(-micro_batches // start) + 1), micro_batches, key=taken)


class StepShape(NamedTuple):
    """What one optimizer step reads."""

    segment: int
    row_length: int
    """Tokens in a row."""
    micro_batches: int
    micro_batch_size: int
    """Rows in a micro-batch."""
    first_row: int
    """Rows of the same segment before it."""
    first_sample: int
    """Rows of the run before it: its own rows are samples ``first_sample .. first_sample + rows``."""

    @property
    def rows(self) -> int:
        return self.micro_batches * self.micro_batch_size


class Curriculum:
    """The shape of every optimizer step of one run."""

    def __init__(
        self, row_lengths: Sequence[int], fractions: Sequence[float], micro_batch_size: int, sizes: BatchSizes, total_steps: int
    ) -> None:
        """
        Args:
            row_lengths: tokens in a row of each segment, each a divisor of the last.
            fractions: each segment's share of the run's tokens; they sum to 1.
            micro_batch_size: rows of the last segment's length in a micro-batch.
        """
        self.row_lengths, self.fractions, self.sizes = tuple(row_lengths), tuple(fractions), sizes
        self.total_steps = total_steps
        self.micro_batch_tokens = micro_batch_size * row_lengths[-1]
        self.micro_batch_sizes = tuple(self.micro_batch_tokens // length for length in row_lengths)
        whole = sizes.before(total_steps)
        borders = [0.0, *accumulate(fractions)][:-1]
        # Rounded, as sums of decimal fractions miss whole numbers by a little.
        self.starts = tuple(bisect_left(range(total_steps), round(b * whole, 6), key=sizes.before) for b in borders)
        """The first step of each segment."""
        warmup = 0 if sizes.start == sizes.full else sizes.warmup
        ends = [min(max(warmup, start), end) for start, end in pairwise((*self.starts, total_steps))]
        of_ends = zip(self.starts, ends, self.micro_batch_sizes, strict=True)
        self.warmup_rows = tuple((sizes.before(end) - sizes.before(start)) * size for start, end, size in of_ends)
        """Rows of each segment in steps of the batch warm-up, which are its first."""
        self._before = [sizes.before(start) for start in (*self.starts, total_steps)]
        of_segments = zip(pairwise(self._before), self.micro_batch_sizes, strict=True)
        self._first_samples = [0, *accumulate((b - a) * size for (a, b), size in of_segments)]

    def at(self, step: int) -> StepShape:
        """Optimizer step ``step``, from 0."""
        segment = bisect_right(self.starts, step) - 1
        size = self.micro_batch_sizes[segment]
        first = (self.sizes.before(step) - self._before[segment]) * size
        first_sample = self._first_samples[segment] + first
        return StepShape(segment, self.row_lengths[segment], self.sizes.at(step), size, first, first_sample)

    def tokens_before(self, step: int) -> int:
        """Tokens, padding among them, of all steps before ``step``; with ``total_steps``, of the whole run."""
        return self.sizes.before(step) * self.micro_batch_tokens

    def segment_tokens(self) -> tuple[int, ...]:
        """Tokens of the run at each segment's length."""
        return tuple((b - a) * self.micro_batch_tokens for a, b in pairwise(self._before))

    @property
    def plain(self) -> bool:
        """Every step is like the first."""
        return len(self.row_lengths) == 1 and (not self.sizes.warmup or self.sizes.start == self.sizes.full)

    def fingerprint(self) -> str:
        """Two runs of equal fingerprints have equal steps; ``plain`` whatever the number of steps."""
        return "plain" if self.plain else f"{self.row_lengths} from {self.starts}, {self.sizes}"

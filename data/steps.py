"""Which rows each micro-batch of optimizer step n reads, when steps differ in length or size: a pure function of n."""

from pathlib import Path
from typing import NamedTuple

from data.curriculum import Curriculum
from data.manifest import Manifest
from data.order import SampleOrder, require_same_order


class MicroBatch(NamedTuple):
    """What one forward pass reads: the arguments of ``PackedDataset.rows``."""

    rows: list[int]
    """Of one segment, so of one length."""
    samples: range
    """Their numbers among all rows of the run."""


class StepOrder:
    """The order of the training rows of a whole run. Each segment of the curriculum has an order, and epochs, of its own."""

    def __init__(self, manifest: Manifest, seed: int, curriculum: Curriculum, patterns: Path | None = None) -> None:
        """
        Args:
            patterns: a folder where the patterns that were found are kept for other processes.

        Raises:
            NotEnoughData: a cell with a weight has no training rows.
        """
        self.curriculum = curriculum
        full, of_segments = curriculum.sizes.full, zip(curriculum.micro_batch_sizes, curriculum.warmup_rows, strict=True)
        self._segments = [
            SampleOrder(manifest, seed, full * size, s, warmup_rows=warmup, patterns=patterns)
            for s, (size, warmup) in enumerate(of_segments)
        ]
        self._state: dict[str, int | str] = {
            **self._segments[-1].state(),
            "mixture": "-".join(str(segment.state()["mixture"]) for segment in self._segments),
            "curriculum": curriculum.fingerprint(),
        }

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """The ordered list that optimizer step ``step`` (from 0) is made of, however many workers share it."""
        shape = self.curriculum.at(step)
        rows = self._segments[shape.segment].take(shape.first_row, shape.rows)
        samples = range(shape.first_sample, shape.first_sample + shape.rows)
        size = shape.micro_batch_size
        return [MicroBatch(rows[i : i + size], samples[i : i + size]) for i in range(0, len(rows), size)]

    def row_lengths(self, step: int) -> list[int]:
        """Tokens in a row of each micro-batch of ``step``."""
        shape = self.curriculum.at(step)
        return [shape.row_length] * shape.micro_batches

    def state(self) -> dict[str, int | str]:
        """What, with the step, fixes the order; kept in every checkpoint."""
        return dict(self._state)

    def require(self, state: dict[str, int | str]) -> None:
        """
        Raises:
            ShardError: ``state``, from a checkpoint, describes another order than this one.
        """
        now = self.state()
        then = {"curriculum": "plain", **state}
        # It also decides the patterns, so it is the one to name.
        require_same_order(then, {"curriculum": now["curriculum"]})
        require_same_order(then, now)

"""Which rows each micro-batch of optimizer step n reads, when steps differ in length or size: a pure function of n."""

from typing import NamedTuple

from data.curriculum import Curriculum
from data.errors import ShardError
from data.manifest import Manifest
from data.order import SampleOrder


class MicroBatch(NamedTuple):
    """What one forward pass reads: the arguments of ``PackedDataset.rows``."""

    rows: list[int]
    """Of one segment, so of one length."""
    samples: range
    """Their numbers among all rows of the run."""


class StepOrder:
    """The order of the training rows of a whole run. Each segment of the curriculum has an order, and epochs, of its own."""

    def __init__(self, manifest: Manifest, seed: int, curriculum: Curriculum) -> None:
        """
        Raises:
            NotEnoughData: a cell with a weight has no training rows.
        """
        self.curriculum = curriculum
        sizes = curriculum.micro_batch_sizes
        self._segments = [SampleOrder(manifest, seed, curriculum.sizes.full * size, s) for s, size in enumerate(sizes)]

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
        return {**self._segments[-1].state(), "curriculum": self.curriculum.fingerprint()}

    def require(self, state: dict[str, int | str]) -> None:
        """
        Raises:
            ShardError: ``state``, from a checkpoint, describes another order than this one.
        """
        self._segments[-1].require(state)
        then, now = state.get("curriculum", "plain"), self.curriculum.fingerprint()
        if then != now:
            raise ShardError(f"the checkpoint was made with another order of samples: curriculum {then} then, {now} now")

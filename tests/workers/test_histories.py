"""Whatever workers came and went, the run reads the same rows: each step is dealt out whole to those that are there."""

from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st

from data.buckets import BucketOrder, order_of_run
from data.curriculum import BatchSizes, Curriculum
from data.manifest import Manifest
from data.steps import MicroBatch, StepOrder
from tests.data.test_buckets import bucketed
from tests.data.test_order import manifest
from workers.mesh import deal

STEPS = 14
SIZES = BatchSizes(full=6, start=2, warmup=7)
RUNS: dict[str, tuple[Manifest, Curriculum]] = {
    "segments": (manifest([50, 70], [0.3, 0.7], shares=(0.3, 0.7)), Curriculum([4, 8], [0.3, 0.7], 2, SIZES, STEPS)),
    "buckets": (bucketed([[40, 0], [20, 40], [10, 20]], [3.0, 1.0]), Curriculum([8], [1.0], 2, SIZES, STEPS)),
}
GENERATIONS = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 8), st.integers(0, 3)), min_size=1, max_size=4)
"""World size, steps until it changes, and steps since the checkpoint that the next generation goes on from."""


def order(run: str) -> StepOrder | BucketOrder:
    made, course = RUNS[run]
    return order_of_run(made, 1, course)


def read_by(orders: list[StepOrder | BucketOrder], step: int) -> list[MicroBatch]:
    """What the ranks, each with an order of its own, read: rank 0, then rank 1, and so on."""
    shares = [deal(own.micro_batches(step), rank, len(orders)) for rank, own in enumerate(orders)]
    assert len({len(share) for share in shares}) == 1
    return [part for share in shares for part in share if part is not None]


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(sorted(RUNS)), GENERATIONS)
def test_any_history_of_world_sizes_reads_the_same_global_batches(run: str, history: list[tuple[int, int, int]]) -> None:
    read: list[list[MicroBatch]] = []
    for world, steps, lost in history:
        # All of a generation's ranks have just joined, and know nothing but the step.
        orders = [order(run) for _ in range(world)]
        for step in range(len(read), min(len(read) + steps, STEPS)):
            read.append(read_by(orders, step))
        # What was read since the last checkpoint is read again, by others.
        del read[max(0, len(read) - lost) :]
    alone = order(run)
    assert read == [alone.micro_batches(step) for step in range(len(read))]
    numbers = [n for step in read for part in step for n in part.samples]
    assert numbers == list(range(len(numbers)))
    micro_batches = [len(step) for step in read]
    assert list(accumulate(micro_batches)) == [SIZES.before(step + 1) for step in range(len(read))]

"""Held-out loss."""

from collections.abc import Iterator
from typing import Literal

from data.dataset import Batch, PackedDataset
from workers.engine import Engine
from workers.mesh import deal

HELD_OUT: Literal["held_out"] = "held_out"


def evenly_spaced(count: int, total: int) -> list[int]:
    """``count`` indices (all, if there are fewer) spread over ``range(total)``, so that every domain in a split is met."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def held_out_loss(engine: Engine, dataset: PackedDataset, *, one_token_context: bool = False) -> float:
    """Mean cross-entropy, nats a token, over ``eval_rows`` held-out rows; the same value on every rank."""
    training, member = engine.spec.training, engine.mesh.membership
    rows = evenly_spaced(training.eval_rows, dataset.num_rows(HELD_OUT))
    parts = [rows[i : i + training.micro_batch_size] for i in range(0, len(rows), training.micro_batch_size)]

    def mine() -> Iterator[Batch | None]:
        for part in deal(parts, member.rank, member.world_size):
            yield None if part is None else dataset.rows(HELD_OUT, part)

    return engine.evaluate(mine(), one_token_context=one_token_context)

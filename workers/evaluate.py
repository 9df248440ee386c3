"""Held-out loss."""

from collections.abc import Iterator
from typing import Literal

from data.dataset import Batch, PackedDataset
from data.ngrams import held_out_losses
from workers.engine import Engine
from workers.mesh import deal

HELD_OUT: Literal["held_out"] = "held_out"


def evenly_spaced(count: int, total: int) -> list[int]:
    """``count`` indices (all, if there are fewer) spread over ``range(total)``, so that every domain in a split is met."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def evaluated_rows(dataset: PackedDataset, eval_rows: int) -> list[int]:
    return evenly_spaced(eval_rows, dataset.num_rows(HELD_OUT))


def counting_losses(dataset: PackedDataset, eval_rows: int) -> tuple[float, float]:
    """A unigram's and a bigram's loss on the very rows that ``held_out_loss`` measures."""
    rows = evaluated_rows(dataset, eval_rows)
    if len(rows) == dataset.num_rows(HELD_OUT):
        return dataset.manifest.unigram_loss, dataset.manifest.bigram_loss
    return held_out_losses(dataset, rows)


def held_out_loss(engine: Engine, dataset: PackedDataset, *, one_token_context: bool = False) -> float:
    """Mean cross-entropy, nats a token, over ``eval_rows`` held-out rows; the same value on every rank."""
    training, member = engine.spec.training, engine.mesh.membership
    rows = evaluated_rows(dataset, training.eval_rows)
    parts = [rows[i : i + training.micro_batch_size] for i in range(0, len(rows), training.micro_batch_size)]

    def mine() -> Iterator[Batch | None]:
        for part in deal(parts, member.rank, member.world_size):
            yield None if part is None else dataset.rows(HELD_OUT, part)

    return engine.evaluate(mine(), one_token_context=one_token_context)

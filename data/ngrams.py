"""What counting alone would reach: held-out loss of a unigram and a bigram model, nats a token.

Both are fitted on the training rows and measured on held-out rows, at exactly the positions where the language model
predicts: the next token of the same document within its row.

Unigram: add-one (Laplace). Bigram: Witten-Bell interpolation with that unigram (Witten and Bell 1991; Chen and Goodman 1999,
section 2.4): ``p(w|h) = (c(h,w) + T(h) p(w)) / (c(h) + T(h))`` with T(h) the number of different tokens seen after h.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.dataset import PackedDataset
from data.executors import Executor
from data.files import write_atomically
from data.manifest import Manifest, Split

# Fitting and measuring read at most about this many positions, in rows at even distance, so that memory stays bounded.
FIT_TOKENS = 1 << 26
MEASURED_TOKENS = 1 << 23
_TOKENS_AT_A_TIME = 1 << 20

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LossTask:
    index: int
    directory: Path
    """Of the data set, whose manifest is not yet there."""
    manifest: Manifest
    result: Path
    """The JSON file to write: both losses. One that is there is used again."""

    @property
    def memory_bytes(self) -> int:
        """About what counting holds of pairs that are all different, which those of real text are not."""
        known = min(self.manifest.tokens("train"), FIT_TOKENS) + min(self.manifest.tokens("held_out"), MEASURED_TOKENS)
        return 16 * known


def with_losses(manifest: Manifest, directory: Path, result: Path, executor: Executor) -> Manifest:
    """A manifest that states the losses of its data set, which one task measures on any machine."""
    for _ in executor.map(measure, [LossTask(0, directory, manifest, result)]):
        pass
    unigram, bigram = json.loads(result.read_bytes())
    return manifest.model_copy(update={"unigram_loss": unigram, "bigram_loss": bigram})


def measure(task: LossTask) -> int:
    if not task.result.is_file():
        losses = held_out_losses(PackedDataset(task.directory, task.manifest))
        write_atomically(task.result, json.dumps(losses).encode())
    return task.index


def held_out_losses(dataset: PackedDataset, rows: Sequence[int] | None = None) -> tuple[float, float]:
    """(unigram, bigram) loss in nats a token, rounded to six digits; 0 where nothing is held out.

    Args:
        rows: held-out rows to measure on, so that a model measured on some of them has a peer; None is all, or as many as
            ``MEASURED_TOKENS`` allows.
    """
    vocab = dataset.manifest.vocab_size
    pairs, count_P = _count(dataset, "train", _spread(dataset, "train", FIT_TOKENS))
    previous_P, next_P = np.divmod(pairs.astype(np.int64), vocab)

    unigram_V = np.bincount(next_P, weights=count_P, minlength=vocab) + 1.0
    unigram_V /= unigram_V.sum()
    total_V = np.bincount(previous_P, weights=count_P, minlength=vocab)
    different_V = np.bincount(previous_P, minlength=vocab)

    tested, times_Q = _count(dataset, "held_out", _spread(dataset, "held_out", MEASURED_TOKENS) if rows is None else rows)
    if not times_Q.sum():
        return 0.0, 0.0
    before_Q, after_Q = np.divmod(tested.astype(np.int64), vocab)
    seen_Q = _lookup(pairs, count_P, tested)
    weight_Q = different_V[before_Q]
    known_Q = np.maximum(total_V[before_Q] + weight_Q, 1)
    bigram_Q = np.where(weight_Q > 0, (seen_Q + weight_Q * unigram_V[after_Q]) / known_Q, unigram_V[after_Q])

    positions = float(times_Q.sum())
    unigram = -float((times_Q * np.log(unigram_V[after_Q])).sum()) / positions
    bigram = -float((times_Q * np.log(bigram_Q)).sum()) / positions
    return round(unigram, 6), round(bigram, 6)


def _spread(dataset: PackedDataset, split: Split, tokens: int) -> range:
    """Rows at even distance that hold about so many tokens, or all."""
    return range(0, dataset.num_rows(split), max(1, -(-dataset.manifest.tokens(split) // tokens)))


def _count(dataset: PackedDataset, split: Split, rows: Sequence[int]) -> tuple[U64, I64]:
    """Different (previous, next) pairs as ``previous * vocab + next``, ascending, and how often each occurs."""
    vocab = np.uint64(dataset.manifest.vocab_size)
    pairs, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    for part in _of_one_length(dataset, split, rows):
        batch = dataset.rows(split, part)
        mask = batch.target_mask
        tokens = batch.tokens.astype(np.uint64)
        new, times = np.unique(tokens[:, :-1][mask] * vocab + tokens[:, 1:][mask], return_counts=True)
        at: I64 = np.atleast_1d(np.searchsorted(pairs, new))  # to sort both anew takes thrice their memory
        inside = at < len(pairs)
        known = np.zeros(len(new), bool)
        known[inside] = pairs[at[inside]] == new[inside]
        counts[at[known]] += times[known]
        pairs, counts = np.insert(pairs, at[~known], new[~known]), np.insert(counts, at[~known], times[~known])
    return pairs, counts


def _of_one_length(dataset: PackedDataset, split: Split, rows: Sequence[int]) -> Iterator[list[int]]:
    """``rows`` in batches of bounded size, each of one segment of the curriculum."""
    for length, members in groupby(rows, key=lambda row: dataset.row_length(split, row)):
        while part := list(islice(members, max(1, _TOKENS_AT_A_TIME // length))):
            yield part


def _lookup(pairs: U64, counts: I64, wanted: U64) -> I64:
    """How often each wanted pair is in ``pairs``; 0 where it is not."""
    if not len(pairs):
        return np.zeros(len(wanted), np.int64)
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    return np.where(pairs[at] == wanted, counts[at], 0)

"""The n-grams that training documents are compared with: of held-out documents and of test sets, sorted by hash, on disk.

``gather`` reads some items (documents of test sets, then held-out ones, numbered through) and writes their n-grams sorted by
hash; ``merge`` makes one partition of the table out of all such files, an equal range of hashes. What a task holds is bounded
by ``memory_bytes``; a task that is marked as done is not done again. ``R`` counts records (an n-gram of an item), ``I`` items.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from data.decontamination.spec import DecontaminateSpec
from data.decontamination.units import Texts, item_lengths
from data.files import U64, atomic, write_atomically
from data.selection import Ints, Mask
from data.tasks import Rows, read_texts

# What gathering and merging hold for one record, with room to spare (a test measures it).
RECORD_BYTES = 128
# An n-gram of more items than this is a formula, not a leak; GPT-3 passed over n-grams of more than 10 documents likewise.
MOST_ITEMS = 1000
_BATCH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class GatherTask:
    index: int
    output: Path
    documents: tuple[tuple[Path, Ints], ...]
    """Parts, and the rows of each: one item after another."""
    first_item: int
    spec: DecontaminateSpec


@dataclass(frozen=True, slots=True)
class GatherResult:
    index: int
    sizes: list[int]
    """Different n-grams of each item, formulas left out; 0: it is too short."""
    lengths: list[int]
    """Of the n-grams that there are."""
    records: int


@dataclass(frozen=True, slots=True)
class MergeTask:
    index: int
    output: Path
    gathered: int
    partitions: int


@dataclass(frozen=True, slots=True)
class MergeResult:
    index: int
    items: list[int]
    """Those that lose n-grams for being formulas, and how many."""
    formulas: list[int]


_GATHERED = TypeAdapter(GatherResult)
_MERGED = TypeAdapter(MergeResult)


def gathered_path(folder: Path, index: int) -> Path:
    return folder / f"gathered-{index:06}.u64"


def table_path(folder: Path, index: int) -> Path:
    return folder / f"table-{index:06}.u64"


def write_records(path: Path, hash_R: U64, item_R: Ints) -> None:
    """All hashes, then all items, as 64-bit words."""
    with atomic(path) as file:
        file.write(hash_R.tobytes())
        file.write(item_R.tobytes())


def map_records(path: Path) -> tuple[U64, Ints]:
    words = map_words(path)
    half = len(words) // 2
    return words[:half].view(np.uint64), words[half:]


def map_words(path: Path) -> Ints:
    """An empty file cannot be mapped."""
    return np.memmap(path, np.int64, "r") if path.stat().st_size else np.empty(0, np.int64)


def gather(task: GatherTask) -> GatherResult:
    marker = task.output.with_suffix(".json")
    if marker.is_file():
        return _GATHERED.validate_json(marker.read_bytes())
    hashes, items, lengths, count = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], set[int](), 0
    for texts in text_batches(task.documents):
        cut = Texts(texts)
        length_T = item_lengths(texts, cut.length_T, task.spec)
        for n in np.unique(length_T[length_T > 0]).tolist():
            hash_W, text_W = cut.windows(n)
            mine = length_T[text_W] == n
            hash_R, text_R = unique_records(hash_W[mine], text_W[mine])
            hashes.append(hash_R)
            items.append(text_R + count)
            lengths.add(n)
        count += len(texts)
    hash_R, item_R = np.concatenate(hashes), np.concatenate(items)
    order = np.lexsort((item_R, hash_R))
    hash_R, item_R = hash_R[order], item_R[order]
    # Enough of a formula's stay to show that it is one when all is merged.
    stays = _place_in_run(hash_R) <= MOST_ITEMS
    hash_R, item_R = hash_R[stays], item_R[stays]
    write_records(task.output, hash_R, item_R + task.first_item)
    sizes = np.bincount(item_R, minlength=count).tolist()
    result = GatherResult(task.index, sizes, sorted(lengths), len(hash_R))
    write_atomically(marker, _GATHERED.dump_json(result))
    return result


def text_batches(documents: tuple[tuple[Path, Ints | Rows], ...]) -> Iterator[list[str]]:
    """About a MiB at a time."""
    batch: list[str] = []
    size = 0
    for text in (text for part, rows in documents for text in read_texts(part, rows)):
        batch.append(text)
        size += len(text)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def unique_records(hash_W: U64, text_W: Ints) -> tuple[U64, Ints]:
    """Each n-gram of a text once, sorted by text."""
    order = np.lexsort((hash_W, text_W))
    hash_W, text_W = hash_W[order], text_W[order]
    new = np.ones(len(hash_W), np.bool_)
    new[1:] = (hash_W[1:] != hash_W[:-1]) | (text_W[1:] != text_W[:-1])
    return hash_W[new], text_W[new]


def _place_in_run(hash_R: U64) -> Ints:
    """How many equal ones stand before each of sorted hashes."""
    starts = np.flatnonzero(np.concatenate([[True], hash_R[1:] != hash_R[:-1]])) if len(hash_R) else np.empty(0, np.int64)
    return np.arange(len(hash_R)) - np.repeat(starts, np.diff([*starts, len(hash_R)]))


def merge(task: MergeTask) -> MergeResult:
    marker = task.output.with_suffix(".json")
    if marker.is_file():
        return _MERGED.validate_json(marker.read_bytes())
    hashes, items = [], []
    for index in range(task.gathered):
        hash_R, item_R = map_records(gathered_path(task.output.parent, index))
        mine = slice(*borders(hash_R, task.partitions)[task.index : task.index + 2].tolist())
        hashes.append(np.array(hash_R[mine]))
        items.append(np.array(item_R[mine]))
    hash_R, item_R = np.concatenate(hashes), np.concatenate(items)
    order = np.argsort(hash_R, kind="stable")
    hash_R, item_R = hash_R[order], item_R[order]
    formula_R = _of_formula(hash_R)
    losers, lost = np.unique(item_R[formula_R], return_counts=True)
    write_records(task.output, hash_R[~formula_R], item_R[~formula_R])
    result = MergeResult(task.index, losers.tolist(), lost.tolist())
    write_atomically(marker, _MERGED.dump_json(result))
    return result


def _of_formula(hash_R: U64) -> Mask:
    """Which of sorted hashes are there more than ``MOST_ITEMS`` times."""
    _, which_R, counts = np.unique(hash_R, return_inverse=True, return_counts=True)
    many_R: Mask = counts[which_R] > MOST_ITEMS
    return many_R


def borders(sorted_hash: U64, partitions: int) -> Ints:
    """Where each partition begins among sorted hashes, and the last ends, ``[partitions + 1]``."""
    firsts = np.array([(i << 64) // partitions for i in range(partitions)], np.uint64)
    return np.append(np.searchsorted(sorted_hash, firsts), len(sorted_hash))

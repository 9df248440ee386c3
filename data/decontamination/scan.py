"""Looks the n-grams of training documents up in the reference table. ``Q`` counts n-grams looked up, ``K`` documents found."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from data.decontamination.reference import borders, map_records, map_words, table_path, text_batches
from data.decontamination.units import Texts
from data.files import U64, write_atomically
from data.selection import Ints, Mask
from data.tasks import Rows

Floats = npt.NDArray[np.float64]

# Records of the table in memory at once while a document's are counted.
_MATCHES_AT_A_TIME = 1 << 20


@dataclass(frozen=True, slots=True)
class ScanTask:
    index: int
    output: Path
    part: Path
    rows: Rows
    reference: Path
    """The folder of the table."""


@dataclass(frozen=True, slots=True)
class ScanResult:
    index: int
    rows: list[int]
    """Of the documents that overlap too much."""
    items: list[int]
    """What each overlaps most, and by which share."""
    shares: list[float]
    found: list[int]
    """All items that were overlapped too much."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What there is beside the table."""

    lengths: list[int]
    partitions: int
    min_overlap: float

    def write(self, folder: Path, size_I: Ints) -> None:
        """
        Args:
            size_I: n-grams of each item.
        """
        write_atomically(folder / "sizes.i64", size_I.tobytes())
        write_atomically(folder / "reference.json", _REFERENCE.dump_json(self))


_REFERENCE = TypeAdapter(Reference)
_RESULT = TypeAdapter(ScanResult)


class _Table:
    """The reference, memory-mapped: n-grams sorted by hash, and the items of each."""

    def __init__(self, folder: Path, partitions: int) -> None:
        self._parts = [map_records(table_path(folder, index)) for index in range(partitions)]

    def has(self, hash_Q: U64) -> Mask:
        order = np.argsort(hash_Q)
        found = np.zeros(len(hash_Q), np.bool_)
        for sorted_Q, (hash_R, _), place in self._by_part(hash_Q[order]):
            at = np.searchsorted(hash_R, sorted_Q)
            inside = at < len(hash_R)
            found[order[place][inside]] = hash_R[at[inside]] == sorted_Q[inside]
        return found

    def items(self, sorted_Q: U64) -> Iterator[Ints]:
        """The items of different n-grams, each as often as it has one of them; not all in memory at once."""
        for mine_Q, (hash_R, item_R), _ in self._by_part(sorted_Q):
            left, right = np.searchsorted(hash_R, mine_Q, "left"), np.searchsorted(hash_R, mine_Q, "right")
            left, right = left[right > left], right[right > left]
            chunk = (np.cumsum(right - left) - 1) // _MATCHES_AT_A_TIME
            for number in np.unique(chunk):
                ranges = zip(left[chunk == number], right[chunk == number], strict=True)
                yield np.concatenate([item_R[a:b] for a, b in ranges])

    def _by_part(self, sorted_Q: U64) -> Iterator[tuple[U64, tuple[U64, Ints], slice]]:
        edges = borders(sorted_Q, len(self._parts)).tolist()
        for part, (begin, end) in zip(self._parts, pairwise(edges), strict=True):
            if begin < end and len(part[0]):
                yield sorted_Q[begin:end], part, slice(begin, end)


def scan(task: ScanTask) -> ScanResult:
    if task.output.is_file():
        return _RESULT.validate_json(task.output.read_bytes())
    reference = _REFERENCE.validate_json((task.reference / "reference.json").read_bytes())
    table = _Table(task.reference, reference.partitions)
    size_I = map_words(task.reference / "sizes.i64")
    result = ScanResult(task.index, [], [], [], [])
    found: set[int] = set()
    rows, at = task.rows.numbers(), 0
    for texts in text_batches(((task.part, task.rows),)):
        for text, items, shares in _overlaps(texts, table, size_I, reference):
            best = int(np.lexsort((items, -shares))[0])
            result.rows.append(int(rows[at + text]))
            result.items.append(int(items[best]))
            result.shares.append(round(float(shares[best]), 4))
            found.update(items.tolist())
        at += len(texts)
    result.found.extend(sorted(found))
    write_atomically(task.output, _RESULT.dump_json(result))
    return result


def _overlaps(texts: list[str], table: _Table, size_I: Ints, reference: Reference) -> Iterator[tuple[int, Ints, Floats]]:
    """Of each text that overlaps an item too much: its number, the items, and the shares."""
    cut = Texts(texts)
    known: dict[int, list[U64]] = {}
    for n in reference.lengths:
        hash_W, text_W = cut.windows(n)
        for text in np.unique(text_W[table.has(hash_W)]).tolist():
            begin, end = np.searchsorted(text_W, [text, text + 1])
            known.setdefault(text, []).append(np.unique(hash_W[begin:end]))
    for text in sorted(known):
        items, shares = map(np.concatenate, zip(*(_shares(each, table, size_I) for each in known[text]), strict=True))
        enough = shares >= reference.min_overlap
        if enough.any():
            yield text, items[enough], shares[enough]


def _shares(hash_Q: U64, table: _Table, size_I: Ints) -> tuple[Ints, Floats]:
    """The items that have some of a text's n-grams of one length, and the share that they have in common."""
    items, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for more in table.items(hash_Q):
        items, which = np.unique(np.concatenate([items, more]), return_inverse=True)
        counts = np.bincount(which, np.concatenate([counts, np.ones(len(more))])).astype(np.int64)
    return items, counts / np.minimum(size_I[items], len(hash_Q))

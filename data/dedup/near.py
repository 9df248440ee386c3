"""From signatures to pairs of documents that are alike, or equal: a shuffle of (key, document) pairs, on any executor.

``bucket`` reads the signatures of a range of documents and writes their keys sorted by partition; ``compare`` reads one
partition of all such files and writes a spanning forest of what it found alike. What is shuffled is 16 bytes a key, never text;
what a task holds is bounded by ``memory_bytes``; a file that is there is not made again. ``R`` counts records (a key of a
document), ``E`` pairs.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data.dedup.crowds import alike_forest
from data.dedup.signatures import Keyed, Method, SignatureFiles, folded, make_keyed, make_method
from data.dedup.spec import ExactSpec, NearSpec
from data.dedup.union import spanning_forest
from data.executors import Executor, SerialExecutor
from data.files import U64, atomic, write_atomically
from data.selection import Ints

# What sorting, grouping and joining hold for one record, with room to spare (a test measures it).
RECORD_BYTES = 192
_WORD = 8


@dataclass(frozen=True, slots=True)
class BucketTask:
    index: int
    output: Path
    """int64: where each partition's records begin, and the last ends; records ``[R, 2]``; pairs ``[E, 2]``."""
    corpus: Path
    begin: int
    end: int
    partitions: int
    spec: ExactSpec | NearSpec

    @property
    def memory_bytes(self) -> int:
        return self.spec.memory_bytes


@dataclass(frozen=True, slots=True)
class CompareTask:
    index: int
    output: Path
    """Pairs ``[E, 2]`` int64."""
    corpus: Path
    buckets: int
    """How many files of records there are."""
    partitions: int
    spec: ExactSpec | NearSpec

    @property
    def memory_bytes(self) -> int:
        return self.spec.memory_bytes


def bucket_path(folder: Path, index: int) -> Path:
    return folder / f"bucket-{index:06}.i64"


def find_pairs(
    spec: ExactSpec | NearSpec,
    files: Sequence[Path],
    counts: Sequence[int],
    folder: Path,
    executor: Executor,
    pulse: Callable[[], None],
) -> Iterator[Ints]:
    """Pairs of document numbers, ``[E, 2]`` at a time, that join all clusters.

    Args:
        files: of signatures; documents are numbered through them.
        counts: documents in each.
        folder: for what is shuffled; the same input goes on with what is there.
        pulse: called after each task; what it raises ends the work.
    """
    if not sum(counts):
        return iter(())
    corpus = folder / "corpus.json"
    write_atomically(corpus, json.dumps([list(map(str, files)), list(counts)]).encode())
    buckets, partitions = _sizes(spec, sum(counts))
    borders = [sum(counts) * i // buckets for i in range(buckets + 1)]
    bucketing = [
        BucketTask(i, bucket_path(folder, i), corpus, borders[i], borders[i + 1], partitions, spec) for i in range(buckets)
    ]
    comparing = [CompareTask(i, folder / f"pairs-{i:06}.i64", corpus, buckets, partitions, spec) for i in range(partitions)]
    if buckets == partitions == 1:
        executor = SerialExecutor()  # a task that is the only one is not worth a worker
    for _ in executor.map(bucket, bucketing):
        pulse()
    for _ in executor.map(compare, comparing):
        pulse()
    found: dict[Path, int | None] = {task.output: partitions for task in bucketing}
    found.update((task.output, None) for task in comparing)
    return _read_pairs(found, spec.memory_bytes // RECORD_BYTES)


def _sizes(spec: ExactSpec | NearSpec, documents: int) -> tuple[int, int]:
    """How many ranges of documents, and how many partitions of keys, keep each task below ``memory_bytes``."""
    method = make_keyed(spec)
    a_document = 2 * method.width * method.dtype.itemsize + method.tables * RECORD_BYTES
    buckets = max(1, -(-documents * a_document // spec.memory_bytes))
    # Half full on average: hashing spreads keys, and not evenly.
    partitions = max(1, -(-2 * documents * method.tables * RECORD_BYTES // spec.memory_bytes))
    return buckets, partitions


def _corpus(path: Path, method: Keyed) -> SignatureFiles:
    paths, counts = json.loads(path.read_bytes())
    return SignatureFiles(list(map(Path, paths)), np.cumsum([0, *counts]), method.dtype, method.width)


def bucket(task: BucketTask) -> int:
    """Writes a range's keys by partition. Of documents that need not be told apart only the first goes on, joined to the rest
    by pairs written here: those of equal signature, or, where a shared key is enough, of equal key."""
    if task.output.is_file():
        return task.index
    method = make_keyed(task.spec)
    keys_NB = method.keys(_corpus(task.corpus, method).between(task.begin, task.end))
    document_N = np.arange(task.begin, task.end)
    if method.verifies:
        _, document_N, pairs = first_of_key(folded(keys_NB), document_N)
        keys_NB = keys_NB[document_N - task.begin]
        key_R, document_R = keys_NB.ravel(), np.repeat(document_N, method.tables)
    else:
        key_R, document_R, pairs = first_of_key(keys_NB.ravel(), np.repeat(document_N, method.tables))
    partition_R = _partition(key_R, task.partitions)
    order = np.argsort(partition_R, kind="stable")
    starts = np.searchsorted(partition_R[order], np.arange(task.partitions + 1))
    with atomic(task.output) as file:
        file.write(starts.astype(np.int64).tobytes())
        file.write(np.stack([key_R.view(np.int64), document_R], axis=1)[order].tobytes())
        file.write(spanning_forest(pairs).tobytes())
    return task.index


def _partition(key_R: U64, partitions: int) -> Ints:
    return ((key_R >> np.uint64(32)) * np.uint64(partitions) >> np.uint64(32)).astype(np.int64)


def first_of_key(key_R: U64, document_R: Ints) -> tuple[U64, Ints, Ints]:
    """The records of each key's first document, and pairs of every other with it."""
    order = np.lexsort((document_R, key_R))
    key_R, document_R = key_R[order], document_R[order]
    first_R = np.ones(len(key_R), np.bool_)
    first_R[1:] = key_R[1:] != key_R[:-1]
    leader = document_R[first_R][np.cumsum(first_R)[~first_R] - 1]
    return key_R[first_R], document_R[first_R], np.stack([document_R[~first_R], leader], axis=1)


def compare(task: CompareTask) -> int:
    """Writes pairs that join the documents of one partition that are alike.

    Records are gathered up to ``memory_bytes``. A partition that has more, which only takes keys that very many documents
    share, is settled in between and goes on with each key's first document: nothing is lost where a shared key is enough.
    """
    if task.output.is_file():
        return task.index
    signatures = _corpus(task.corpus, make_keyed(task.spec))
    method = None if isinstance(task.spec, ExactSpec) else make_method(task.spec)
    most = task.spec.memory_bytes // RECORD_BYTES
    key_R, document_R = np.empty(0, np.uint64), np.empty(0, np.int64)
    with atomic(task.output) as file:
        for key, document in _records(task, most // 4):
            if len(key_R) + len(key) > most:
                key_R, document_R = _settle(key_R, document_R, method, signatures, task.spec.memory_bytes, file)
            key_R, document_R = np.concatenate([key_R, key]), np.concatenate([document_R, document])
        _settle(key_R, document_R, method, signatures, task.spec.memory_bytes, file)
    return task.index


def _records(task: CompareTask, most: int) -> Iterator[tuple[U64, Ints]]:
    """The partition's records, file by file, at most so many at a time."""
    for index in range(task.buckets):
        path = bucket_path(task.output.parent, index)
        at, end = map(int, np.fromfile(path, np.int64, 2, offset=task.index * _WORD))
        while at < end:
            count = min(most, end - at)
            offset = (task.partitions + 1 + 2 * at) * _WORD
            records = np.fromfile(path, np.int64, 2 * count, offset=offset).reshape(-1, 2)
            yield records[:, 0].copy().view(np.uint64), records[:, 1].copy()
            at += count


def _settle(
    key_R: U64, document_R: Ints, method: Method | None, signatures: SignatureFiles, memory_bytes: int, file: BinaryIO
) -> tuple[U64, Ints]:
    """Writes the pairs among these records; what stays is the first of each key."""
    if method is None or not method.verifies:
        firsts, documents, pairs = first_of_key(key_R, document_R)
        file.write(spanning_forest(pairs).tobytes())
        return firsts, documents
    order = np.lexsort((document_R, key_R))
    key_R, document_R = key_R[order], document_R[order]
    again_R = np.zeros(len(key_R) + 1, np.bool_)
    again_R[1:-1] = key_R[1:] == key_R[:-1]
    firsts, documents = key_R[~again_R[:-1]], document_R[~again_R[:-1]]
    shared_R = again_R[:-1] | again_R[1:]
    key_R, document_R = key_R[shared_R], document_R[shared_R]
    most = max(1, memory_bytes // 4 // (2 * method.width * method.dtype.itemsize + RECORD_BYTES))
    at = 0
    while at < len(key_R):
        end = _whole_keys(key_R, at, most)
        file.write(alike_forest(key_R[at:end], document_R[at:end], method, signatures).tobytes())
        at = end
    return firsts, documents


def _whole_keys(key_R: U64, at: int, most: int) -> int:
    """Where to stop after about ``most`` records, between two keys; within one only where it has more than that."""
    end = at + most
    if end >= len(key_R):
        return len(key_R)
    start = int(np.searchsorted(key_R, key_R[end]))
    return start if start > at else end


def _read_pairs(files: Mapping[Path, int | None], most: int) -> Iterator[Ints]:
    """Of files of pairs (None), and of files whose pairs lie behind the records of so many partitions."""
    for path, partitions in files.items():
        at = 0
        if partitions is not None:
            records = int(np.fromfile(path, np.int64, 1, offset=partitions * _WORD)[0])
            at = (partitions + 1 + 2 * records) * _WORD
        while len(pairs := np.fromfile(path, np.int64, 2 * most, offset=at)):
            yield pairs.reshape(-1, 2)
            at += pairs.nbytes

"""Which training documents overlap held-out documents or items of test sets: three rounds of tasks on any executor."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.corpus import Documents
from data.decontamination.reference import (
    RECORD_BYTES,
    GatherResult,
    GatherTask,
    MergeTask,
    gather,
    gathered_path,
    merge,
    table_path,
)
from data.decontamination.scan import Reference, ScanTask, scan
from data.decontamination.spec import DecontaminateSpec
from data.executors import Executor
from data.selection import Ints, Mask
from data.tasks import Rows


@dataclass(frozen=True, slots=True)
class ReferenceSet:
    """Some documents that training must not repeat: each is an item."""

    name: str
    documents: Documents
    numbers: Ints
    """Which of them, ascending."""


@dataclass(frozen=True, slots=True)
class Overlaps:
    """``K`` counts the training documents that overlap too much, ``S`` the reference sets, ``I`` the items of all of them."""

    number_K: Ints
    item_K: Ints
    """What each overlaps most."""
    share_K: list[float]
    set_I: Ints
    size_I: Ints
    """N-grams; 0: too short to be looked for."""
    found_I: Mask
    """What is overlapped by some training document."""


def find_overlaps(
    *,
    spec: DecontaminateSpec,
    sets: list[ReferenceSet],
    documents: Documents,
    held_out_N: Mask,
    folder: Path,
    executor: Executor,
    pulse: Callable[[], None],
) -> Overlaps:
    """
    Args:
        held_out_N: which documents are not looked at.
        folder: for what tasks write; the same input goes on with what is there.
        pulse: called after each task; what it raises ends the work.
    """
    tasks = list(_gather_tasks(spec, sets, folder))
    gathered: dict[int, GatherResult] = {}
    for result in executor.map(gather, tasks):
        gathered[result.index] = result
        pulse()
    ordered = [gathered[task.index] for task in tasks]
    size_I = np.array([size for result in ordered for size in result.sizes], np.int64)
    partitions = max(1, -(-sum(result.records for result in ordered) * RECORD_BYTES // spec.memory_bytes))
    merging = [MergeTask(i, table_path(folder, i), len(tasks), partitions) for i in range(partitions)]
    for merged in executor.map(merge, merging):
        np.subtract.at(size_I, np.array(merged.items, np.int64), np.array(merged.formulas, np.int64))
        pulse()
    lengths = sorted({length for result in ordered for length in result.lengths})
    Reference(lengths, partitions, spec.min_overlap).write(folder, size_I)
    set_I = np.repeat(np.arange(len(sets)), [len(each.numbers) for each in sets])
    return _scanned(documents, held_out_N, folder, executor, pulse, set_I, size_I)


def _gather_tasks(spec: DecontaminateSpec, sets: list[ReferenceSet], folder: Path) -> Iterator[GatherTask]:
    """An n-gram takes at least two bytes of text: a letter, and what parts it from the next."""
    room = 2 * spec.memory_bytes // RECORD_BYTES
    index, item = 0, 0
    for each in sets:
        portion = np.cumsum(each.documents.bytes_N[each.numbers]) // room
        starts = np.unique(portion, return_index=True)[1]
        for numbers in np.split(each.numbers, starts[1:]):
            documents = tuple(each.documents.locate(numbers))
            yield GatherTask(index, gathered_path(folder, index), documents, item, spec)
            index += 1
            item += len(numbers)


def _scanned(
    documents: Documents,
    held_out_N: Mask,
    folder: Path,
    executor: Executor,
    pulse: Callable[[], None],
    set_I: Ints,
    size_I: Ints,
) -> Overlaps:
    tasks: list[ScanTask] = []
    of_tasks: list[slice] = []
    for part, of_part in documents.by_part():
        rows = documents.row_N[of_part][~held_out_N[of_part]]
        if len(rows):
            output = folder / f"scanned-{len(tasks):06}.json"
            tasks.append(ScanTask(len(tasks), output, part, Rows.of(rows), folder))
            of_tasks.append(of_part)
    results = {}
    for result in executor.map(scan, tasks):
        results[result.index] = result
        pulse()
    number_K, item_K, share_K = [np.empty(0, np.int64)], [], []
    found_I = np.zeros(len(size_I), np.bool_)
    for task, of_task in zip(tasks, of_tasks, strict=True):
        result = results[task.index]
        number_K.append(of_task.start + np.searchsorted(documents.row_N[of_task], result.rows))
        item_K += result.items
        share_K += result.shares
        found_I[result.found] = True
    return Overlaps(np.concatenate(number_K), np.array(item_K, np.int64), share_K, set_I, size_I, found_I)

"""What deduplication and decontamination dropped, read out of the parts again and kept aside: a task a part.

It may be most of a corpus, so it is looked up a part at a time. ``K`` counts documents that are kept aside.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.corpus import Documents
from data.documents import Document
from data.dropped import dropped_writer
from data.executors import Executor
from data.selection import Ints
from data.stages.base import Drop
from data.tasks import Rows, read_rows

# That the tasks of one round are told of.
_ROUND_DOCUMENTS = 1 << 18


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a step dropped among some documents."""

    number_K: Ints
    """Ascending."""
    reason_K: npt.NDArray[np.uint8]
    details: list[str]
    """One a document, or none at all."""
    other_part_K: Ints
    """Where the document lies that is kept in the place of each, or the one that it overlaps."""
    other_row_K: Ints


@dataclass(frozen=True, slots=True)
class Aside:
    """Documents that one step dropped."""

    stage: str
    documents: Documents
    reasons: tuple[str, ...]
    other_parts: list[Path]
    among: Callable[[slice], Dropped]
    """Looks them up among the documents of these numbers."""


@dataclass(frozen=True, slots=True)
class AsideTask:
    index: int
    output: Path
    stage: str
    part: Path
    domain: str
    rows: Rows
    reasons: tuple[str, ...]
    reason_K: npt.NDArray[np.uint8]
    details: list[str]
    other_parts: list[Path]
    other_part_K: npt.NDArray[np.int32]
    other_row_K: Ints


def keep_aside(asides: list[Aside], domains: list[str], folder: Path, executor: Executor, pulse: Callable[[], None]) -> None:
    """Writes ``folder/<stage>-<number>.parquet``; what is there already is not written again.

    Args:
        domains: of the parts.
    """
    for tasks in _rounds(task for aside in asides for task in _tasks(aside, domains, folder)):
        for _ in executor.map(write_aside, tasks):
            pulse()


def _rounds(tasks: Iterable[AsideTask]) -> Iterator[list[AsideTask]]:
    together: list[AsideTask] = []
    room = _ROUND_DOCUMENTS
    for task in tasks:
        together.append(task)
        room -= len(task.rows)
        if room <= 0:
            yield together
            together, room = [], _ROUND_DOCUMENTS
    if together:
        yield together


def _tasks(aside: Aside, domains: list[str], folder: Path) -> Iterator[AsideTask]:
    index = 0
    for domain, (part, span) in zip(domains, aside.documents.by_part(), strict=True):
        dropped = aside.among(span)
        if not len(dropped.number_K):
            continue
        parts, other_part_K = np.unique(dropped.other_part_K, return_inverse=True)
        yield AsideTask(
            index=index,
            output=folder / f"{aside.stage}-{index:06}.parquet",
            stage=aside.stage,
            part=part,
            domain=domain,
            rows=Rows.of(aside.documents.row_N[dropped.number_K]),
            reasons=aside.reasons,
            reason_K=dropped.reason_K,
            details=dropped.details,
            other_parts=[aside.other_parts[each] for each in parts.tolist()],
            other_part_K=other_part_K.astype(np.int32),
            other_row_K=dropped.other_row_K,
        )
        index += 1


def write_aside(task: AsideTask) -> int:
    if task.output.is_file():
        return task.index
    rows = read_rows(task.part, task.rows, "text", "id", "url", "language", "grade")
    reasons = (task.reasons[reason] for reason in task.reason_K.tolist())
    drops = map(Drop, reasons, task.details or [""] * len(task.rows))
    with dropped_writer(task.output) as take:
        for (text, id_, url, language, grade), drop, other_id in zip(rows, drops, _other_ids(task), strict=True):
            take(task.stage, drop, Document(text, id_, language, task.domain, url, grade), other_id)
    return task.index


def _other_ids(task: AsideTask) -> list[str]:
    ids = [""] * len(task.rows)
    for number, part in enumerate(task.other_parts):
        mine = np.flatnonzero(task.other_part_K == number)
        rows, which = np.unique(task.other_row_K[mine], return_inverse=True)
        found = [id_ for (id_,) in read_rows(part, rows, "id")]
        for at, row in zip(mine.tolist(), which.tolist(), strict=True):
            ids[at] = found[row]
    return ids

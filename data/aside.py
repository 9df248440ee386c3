"""What deduplication and decontamination dropped, read out of the parts again and kept aside: a task a part.

``K`` counts documents that are kept aside.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.corpus import Documents
from data.documents import Document
from data.dropped import dropped_writer
from data.executors import Executor
from data.selection import Ints
from data.stages.base import Drop
from data.tasks import read_rows


@dataclass(frozen=True, slots=True)
class Aside:
    """Documents that one step dropped."""

    stage: str
    documents: Documents
    number_K: Ints
    """Which of them, ascending."""
    reasons: tuple[str, ...]
    reason_K: Ints
    details: list[str]
    """One a document, or none at all."""
    other_parts: list[Path]
    other_part_K: Ints
    """Where the document lies that is kept in the place of each, or the one that it overlaps."""
    other_row_K: Ints


@dataclass(frozen=True, slots=True)
class AsideTask:
    index: int
    output: Path
    stage: str
    part: Path
    domain: str
    row_K: Ints
    drops: list[Drop]
    other_parts: list[Path]
    other_part_K: Ints
    other_row_K: Ints


def keep_aside(asides: list[Aside], domains: list[str], folder: Path, executor: Executor, pulse: Callable[[], None]) -> None:
    """Writes ``folder/<stage>-<number>.parquet``; what is there already is not written again.

    Args:
        domains: of the parts.
    """
    for _ in executor.map(write_aside, [task for aside in asides for task in _tasks(aside, domains, folder)]):
        pulse()


def _tasks(aside: Aside, domains: list[str], folder: Path) -> Iterator[AsideTask]:
    begin = 0
    for index, (part, row_K) in enumerate(aside.documents.locate(aside.number_K)):
        mine = slice(begin, begin + len(row_K))
        parts, other_part_K = np.unique(aside.other_part_K[mine], return_inverse=True)
        details = aside.details[mine] or [""] * len(row_K)
        reasons = [aside.reasons[reason] for reason in aside.reason_K[mine].tolist()]
        yield AsideTask(
            index=index,
            output=folder / f"{aside.stage}-{index:06}.parquet",
            stage=aside.stage,
            part=part,
            domain=domains[aside.documents.part_N[aside.number_K[begin]]],
            row_K=row_K,
            drops=[Drop(reason, detail) for reason, detail in zip(reasons, details, strict=True)],
            other_parts=[aside.other_parts[each] for each in parts.tolist()],
            other_part_K=other_part_K,
            other_row_K=aside.other_row_K[mine],
        )
        begin = mine.stop


def write_aside(task: AsideTask) -> int:
    if task.output.is_file():
        return task.index
    rows = read_rows(task.part, task.row_K, "text", "id", "url", "language", "grade")
    with dropped_writer(task.output) as take:
        for (text, id_, url, language, grade), drop, other_id in zip(rows, task.drops, _other_ids(task), strict=True):
            take(task.stage, drop, Document(text, id_, language, task.domain, url, grade), other_id)
    return task.index


def _other_ids(task: AsideTask) -> list[str]:
    ids = [""] * len(task.row_K)
    for number, part in enumerate(task.other_parts):
        mine = np.flatnonzero(task.other_part_K == number)
        rows, which = np.unique(task.other_row_K[mine], return_inverse=True)
        found = [id_ for (id_,) in read_rows(part, rows, "id")]
        for at, row in zip(mine.tolist(), which.tolist(), strict=True):
            ids[at] = found[row]
    return ids

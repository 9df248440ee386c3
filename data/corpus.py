"""All documents that passed cleaning, as arrays: how they are cleaned, where they lie, which cell each belongs to."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.cleaned import clean_versions, part_name
from data.columns import spans, write_columns
from data.dedup.spec import ExactSpec
from data.files import U64, key64
from data.funnel import Funnel, drops_of
from data.report import Amount, Histogram, ReferenceFigures
from data.selection import Ints, Mask
from data.sources import InputFile, extents
from data.spec import DataSpec
from data.stages.base import EXAMPLES, DroppedExample
from data.stages.excerpt import excerpt
from data.tasks import CleanTask, Rows, read_index, read_rows

# Small files are cleaned together, up to this many bytes, so that a task is worth its overhead.
_TASK_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents that passed cleaning, by number in reading order: columns in files; the text stays in its part."""

    parts: list[Path]
    folder: Path
    """Of the columns; each file has its column's name."""
    hash_N: U64
    part_N: Ints
    row_N: Ints
    bytes_N: Ints
    cell_N: Ints

    @staticmethod
    def of_parts(parts: list[Path], cell_P: Ints, folder: Path) -> "Documents":
        """
        Args:
            cell_P: of each part.
            folder: for the columns.
        """
        return Documents._of(parts, _columns_of(parts, cell_P), folder)

    @staticmethod
    def _of(parts: list[Path], pieces: Iterable[Sequence[npt.NDArray[Any]]], folder: Path) -> "Documents":
        return Documents(parts, folder, **write_columns(folder, _COLUMNS, pieces))

    def __len__(self) -> int:
        return len(self.hash_N)

    def take(self, keep: Mask, folder: Path) -> "Documents":
        """
        Args:
            folder: for the columns.
        """
        columns = [getattr(self, name) for name in _COLUMNS]
        pieces = ([column[span][keep[span]] for column in columns] for span in spans(len(self)))
        return Documents._of(self.parts, pieces, folder)

    def by_part(self) -> Iterator[tuple[Path, slice]]:
        """Each part with its documents."""
        borders = np.searchsorted(self.part_N, np.arange(len(self.parts) + 1)).tolist()
        return zip(self.parts, map(slice, borders, borders[1:]), strict=False)

    def of_each_part(self) -> list[int]:
        """How many there are."""
        return [documents.stop - documents.start for _, documents in self.by_part()]

    def locate(self, numbers: Ints) -> Iterator[tuple[Path, Ints]]:
        """Parts, and the rows of each, of ascending numbers."""
        parts, starts = np.unique(self.part_N[numbers], return_index=True)
        for part, start, end in zip(parts, starts, np.append(starts, len(numbers))[1:], strict=True):
            yield self.parts[part], self.row_N[numbers[start:end]]

    def rows_of(self, numbers: Ints) -> tuple[tuple[Path, Rows], ...]:
        """Parts, and the rows of each, of ascending numbers, as a task is told."""
        return tuple((part, Rows.of(rows)) for part, rows in self.locate(numbers))

    def amounts(self, cells: int) -> tuple[Amount, ...]:
        """By cell."""
        amounts = [Amount()] * cells
        for span in spans(len(self)):
            for cell in range(cells):
                sizes = self.bytes_N[span][self.cell_N[span] == cell]
                amounts[cell] += Amount(documents=len(sizes), bytes=int(sizes.sum()))
        return tuple(amounts)

    def examples(self, numbers: Ints) -> list[DroppedExample]:
        """The first of these documents."""
        found = []
        for part, rows in self.locate(numbers[:EXAMPLES]):
            found += [
                DroppedExample(id_, "", excerpt(text, in_))
                for id_, text, in_ in read_rows(part, rows, "id", "text", "language")
            ]
        return found


_COLUMNS: dict[str, type[np.generic]] = {
    "hash_N": np.uint64,
    **dict.fromkeys(("part_N", "row_N", "bytes_N", "cell_N"), np.int64),
}


def _columns_of(parts: list[Path], cell_P: Ints) -> Iterator[Sequence[npt.NDArray[Any]]]:
    """In the order of ``_COLUMNS``."""
    for number, part in enumerate(parts):
        row = 0
        for hash_R, bytes_R in read_index(part):
            count = len(hash_R)
            yield hash_R, np.full(count, number), np.arange(row, row + count), bytes_R, np.full(count, cell_P[number])
            row += count


@dataclass(frozen=True, slots=True)
class Corpus(Documents):
    """What is kept, and for what."""

    held_out_N: Mask
    segment_N: Ints
    """Of the curriculum; held-out documents are packed as the last one's."""
    clusters: Histogram
    """How many documents were alike, of each cluster of two or more."""
    largest_cluster: int
    funnel: Funnel
    read_C: tuple[Amount, ...]
    """By cell."""
    cleaned_C: tuple[Amount, ...]
    decontamination: tuple[ReferenceFigures, ...]
    languages: dict[str, Amount]
    """What passed the stages, by the language that the last one left it in."""

    def portions(self, held_out: bool, segment: int, cell: int, documents: int, bytes_: int) -> Iterator[Ints]:
        """Numbers of the documents of one side, segment and cell: runs of at most so many, and so many bytes, but of one at
        least."""
        left = np.empty(0, np.int64)
        for span in spans(len(self)):
            chosen = (self.held_out_N[span] == held_out) & (self.segment_N[span] == segment) & (self.cell_N[span] == cell)
            left = np.concatenate([left, span.start + np.flatnonzero(chosen)])
            until = np.cumsum(self.bytes_N[left])
            start = 0
            while start < len(left):
                before = int(until[start - 1]) if start else 0
                full = int(np.searchsorted(until, before + bytes_, side="right"))
                end = min(start + documents, max(full, start + 1))
                if end >= len(left):  # the next span may have more of it
                    break
                yield left[start:end]
                start = end
            left = left[start:]
        if len(left):
            yield left

    @property
    def read(self) -> int:
        return self.funnel[0].documents

    @property
    def drops(self) -> dict[str, int]:
        """Documents that were left out, by reason, whatever left them out."""
        return drops_of(self.funnel)


def clean_tasks(data: DataSpec, files: list[list[InputFile]], folder: Path) -> Iterator[CleanTask]:
    """
    Args:
        folder: for the parts, whose names say what is in them.
    """
    index = 0
    near = None if isinstance(data.deduplicate, ExactSpec) else data.deduplicate
    cleaning = clean_versions(data)
    for number, (source, of_source) in enumerate(zip(data.sources, files, strict=True)):
        for group in _grouped([piece for file in of_source for piece in extents(file)], data.shard_documents):
            yield CleanTask(
                index=index,
                part=folder / part_name(data, source, group, near, cleaning),
                files=tuple(group),
                source=source,
                pointer=f"/data_pipeline/sources/{number}",
                stages=data.stages,
                max_document_bytes=data.max_document_bytes,
                drop_bad=data.on_bad_document == "drop",
                near=near,
                keep_dropped=data.keep_dropped,
            )
            index += 1


def _grouped(files: list[InputFile], most: int) -> Iterator[list[InputFile]]:
    """Most groups end at a file that always ends one: a file more or less changes the group that it is in and no other."""
    group: list[InputFile] = []
    size = 0
    for file in files:
        if group and (size + file.bytes > _TASK_BYTES or len(group) == most):
            yield group
            group, size = [], 0
        group.append(file)
        size += file.bytes
        if _ends_group(file, most):
            yield group
            group, size = [], 0
    if group:
        yield group


def _ends_group(file: InputFile, most: int) -> bool:
    """By the hash of its path, about twice in as many bytes, or files, as a group may have."""
    return int(key64(file.path)) < 2**64 * max(2 * file.bytes / _TASK_BYTES, 2 / most)


def cells(data: DataSpec) -> dict[tuple[str, str], float]:
    """Weight of each (language, domain), in order of appearance."""
    return data.cells

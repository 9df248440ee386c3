"""All documents that passed cleaning, as arrays: what is kept, what is held out, which cell each belongs to."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from data.errors import NotEnoughData
from data.files import U64
from data.selection import Ints, Mask, first_of_each, held_out, partition
from data.sources import InputFile
from data.spec import DataSpec
from data.stages.base import StageCount
from data.tasks import CleanResult, CleanTask, read_index

# Small files are cleaned together, up to this many bytes, so that a task is worth its overhead.
_TASK_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Corpus:
    """Every document that passed cleaning, by number in reading order; the text stays in its part."""

    parts: list[Path]
    hash_N: U64
    part_N: Ints
    row_N: Ints
    bytes_N: Ints
    cell_N: Ints
    held_out_N: Mask
    segment_N: Ints
    """Of the curriculum; held-out documents are packed as the last one's."""
    read: int
    drops: dict[str, int]
    """Documents that were left out, by reason, whatever left them out."""
    stages: tuple[StageCount, ...]

    def locate(self, numbers: Iterable[int]) -> Iterator[tuple[Path, tuple[int, ...]]]:
        for part, members in groupby(numbers, key=lambda n: int(self.part_N[n])):
            yield self.parts[part], tuple(int(self.row_N[n]) for n in members)


def clean_tasks(data: DataSpec, files: list[list[InputFile]], work: Path) -> Iterator[CleanTask]:
    index = 0
    for number, (source, of_source) in enumerate(zip(data.sources, files, strict=True)):
        for group in _grouped(of_source, data.shard_documents):
            yield CleanTask(
                index=index,
                part=work / f"documents-{index:06}.arrow",
                files=tuple(group),
                source=source,
                source_index=number,
                stages=data.stages,
                max_document_bytes=data.max_document_bytes,
                drop_bad=data.on_bad_document == "drop",
            )
            index += 1


def _grouped(files: list[InputFile], most: int) -> Iterator[list[InputFile]]:
    group: list[InputFile] = []
    size = 0
    for file in files:
        if group and (size + file.size > _TASK_BYTES or len(group) == most):
            yield group
            group, size = [], 0
        group.append(file)
        size += file.size
    if group:
        yield group


def cells(data: DataSpec) -> dict[tuple[str, str], float]:
    """Weight of each (language, domain), in order of appearance."""
    weights: dict[tuple[str, str], float] = {}
    for source in data.sources:
        key = (source.language, source.domain)
        weights[key] = weights.get(key, 0.0) + source.weight
    return weights


def select(data: DataSpec, tasks: list[CleanTask], results: list[CleanResult]) -> Corpus:
    """Deduplicates and splits, over the whole corpus, by hash."""
    drops: Counter[str] = Counter()
    stages = tuple(StageCount(spec.stage) for spec in data.stages)
    for result in results:
        drops.update(result.drops)
        for mine, other in zip(stages, result.stages, strict=True):
            mine.add(other)
            drops.update(other.drops)
    names = list(cells(data))
    indices = [read_index(task.part) for task in tasks]
    hash_N = np.concatenate([hashes for hashes, _ in indices])
    bytes_N = np.concatenate([sizes for _, sizes in indices])
    part_N = np.repeat(np.arange(len(tasks)), [len(hashes) for hashes, _ in indices])
    row_N = np.concatenate([np.arange(len(hashes)) for hashes, _ in indices])
    cell_of_task = np.array([names.index((task.source.language, task.source.domain)) for task in tasks])
    keep = first_of_each(hash_N) if data.deduplicate else np.ones(len(hash_N), np.bool_)
    if duplicates := int((~keep).sum()):
        drops["duplicate"] = duplicates
    hash_N, bytes_N, part_N, row_N = hash_N[keep], bytes_N[keep], part_N[keep], row_N[keep]
    cell_N = cell_of_task[part_N]
    held_out_N = held_out(hash_N, cell_N, data.held_out_fraction, data.seed)
    train = np.flatnonzero(~held_out_N)
    segment_N = np.full(len(hash_N), len(data.segments) - 1)
    fractions = [segment.fraction for segment in data.segments]
    segment_N[train] = partition(hash_N[train], bytes_N[train], cell_N[train], fractions, data.seed)
    corpus = Corpus(
        parts=[task.part for task in tasks],
        hash_N=hash_N,
        part_N=part_N,
        row_N=row_N,
        bytes_N=bytes_N,
        cell_N=cell_N,
        held_out_N=held_out_N,
        segment_N=segment_N,
        read=sum(result.read for result in results),
        drops=dict(sorted(drops.items())),
        stages=stages,
    )
    _require_documents(data, corpus, names)
    return corpus


def _require_documents(data: DataSpec, corpus: Corpus, names: list[tuple[str, str]]) -> None:
    left_out = ", ".join(f"{count} {reason}" for reason, count in corpus.drops.items())
    because = f" ({corpus.read} read; left out: {left_out})" if left_out else f" ({corpus.read} read)"
    for cell, name in enumerate(names):
        if not (corpus.cell_N == cell).any():
            first = next(i for i, s in enumerate(data.sources) if (s.language, s.domain) == name)
            path = data.sources[first].path
            raise NotEnoughData(
                f"{path}: no document is left of {name[0]}/{name[1]}{because}", pointer=f"/data_pipeline/sources/{first}/path"
            )
        of_cell = (corpus.cell_N == cell) & ~corpus.held_out_N
        for number, segment in enumerate(data.segments):
            if not (of_cell & (corpus.segment_N == number)).any():
                raise NotEnoughData(
                    f"{of_cell.sum()} training documents of {name[0]}/{name[1]} are too few for the curriculum: none falls to"
                    f" its part of {segment.sequence_length} tokens; give more text, or fewer segments",
                    pointer=f"/data_pipeline/curriculum/{number}",
                )
    if not corpus.held_out_N.any():
        raise NotEnoughData(
            f"only one document is left{because}; at least two are needed, one of them held out to measure on."
            " A text file of up to 64 KiB is one document: split it, or use JSON lines",
            pointer="/data_pipeline/sources/0/path",
        )

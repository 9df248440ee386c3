"""All documents that passed cleaning, as arrays: what is kept, what is held out, which cell each belongs to."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from data.dedup.near import find_pairs
from data.dedup.spec import ExactSpec
from data.dedup.union import find, union
from data.errors import NotEnoughData
from data.executors import Executor
from data.files import U64
from data.funnel import Funnel, drops_of, funnel_of, languages_of, left_out, read_of, who_took_the_last
from data.report import Amount
from data.selection import Ints, Mask, first_alike, first_of_each, held_out, longest_of_each, partition
from data.sources import InputFile
from data.spec import DataSpec
from data.stages.base import EXAMPLE_CHARACTERS, EXAMPLES, Example, StageCount
from data.tasks import CleanResult, CleanTask, read_index, read_texts

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
    cluster_sizes: Ints
    """How many documents were alike, of each cluster of two or more."""
    segment_N: Ints
    """Of the curriculum; held-out documents are packed as the last one's."""
    funnel: Funnel
    read_C: tuple[Amount, ...]
    """By cell."""
    cleaned_C: tuple[Amount, ...]
    languages: dict[str, Amount]
    """What passed the stages, by the language that the last one left it in."""

    @property
    def read(self) -> int:
        return self.funnel[0].documents

    @property
    def drops(self) -> dict[str, int]:
        """Documents that were left out, by reason, whatever left them out."""
        return drops_of(self.funnel)

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
                near=None if isinstance(data.deduplicate, ExactSpec) else data.deduplicate,
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


def near_pairs(
    data: DataSpec,
    tasks: list[CleanTask],
    results: list[CleanResult],
    work: Path,
    executor: Executor,
    pulse: Callable[[], None],
) -> Iterable[Ints]:
    """Pairs of documents that are nearly the same, by number in reading order; none where only copies are looked for."""
    if data.deduplicate is None or isinstance(data.deduplicate, ExactSpec):
        return ()
    counts = [result.kept for result in results]
    if not sum(counts):
        return ()
    return find_pairs(data.deduplicate, [task.part for task in tasks], counts, work / "near", executor, pulse)


def _clusters(hash_N: U64, pairs: Iterable[Ints]) -> Ints:
    """The first document of each document's cluster, ``[N]``: equal ones are in one, and those that pairs join."""
    cluster_N = first_alike(hash_N)
    for pairs_E2 in pairs:
        union(cluster_N, pairs_E2)
    return find(cluster_N, np.arange(len(cluster_N)))


def _kept(data: DataSpec, hash_N: U64, cluster_N: Ints, bytes_N: Ints) -> Mask:
    if data.deduplicate is None:
        return np.ones(len(hash_N), np.bool_)
    keep = first_of_each(hash_N)
    if isinstance(data.deduplicate, ExactSpec) or data.deduplicate.keep == "all":
        return keep
    if data.deduplicate.keep == "first":
        first: Mask = cluster_N == np.arange(len(cluster_N))
        return first
    different = np.flatnonzero(keep)
    keep[different] = longest_of_each(cluster_N[different], bytes_N[different])
    return keep


def select(data: DataSpec, tasks: list[CleanTask], results: list[CleanResult], pairs: Iterable[Ints] = ()) -> Corpus:
    """Deduplicates and splits, over the whole corpus.

    Args:
        pairs: of documents that are nearly the same, ``[E, 2]`` at a time, by number in reading order.
    """
    names = list(cells(data))
    indices = [read_index(task.part) for task in tasks]
    hash_N = np.concatenate([hashes for hashes, _ in indices])
    bytes_N = np.concatenate([sizes for _, sizes in indices])
    part_N = np.repeat(np.arange(len(tasks)), [len(hashes) for hashes, _ in indices])
    row_N = np.concatenate([np.arange(len(hashes)) for hashes, _ in indices])
    cell_of_task = np.array([names.index((task.source.language, task.source.domain)) for task in tasks])
    cluster_N = _clusters(hash_N, pairs)
    keep = _kept(data, hash_N, cluster_N, bytes_N)
    cleaned_cell_N = cell_of_task[part_N]
    deduplicate = StageCount("deduplicate", len(hash_N), int(bytes_N.sum()))
    equal = ~first_of_each(hash_N)
    for reason, dropped in (("duplicate", ~keep & equal), ("near_duplicate", ~keep & ~equal)):
        if numbers := np.flatnonzero(dropped).tolist():
            deduplicate.drops[reason] = len(numbers)
            texts = (next(read_texts(tasks[part_N[n]].part, (int(row_N[n]),))) for n in numbers[:EXAMPLES])
            deduplicate.examples[reason] = [Example("", "", text[:EXAMPLE_CHARACTERS]) for text in texts]
    _require_each_cell(data, results, cell_of_task, cleaned_cell_N, keep)
    cleaned_C = tuple(amount(bytes_N[cleaned_cell_N == cell]) for cell in range(len(names)))
    read_C = tuple(read_of(results[task] for task in np.flatnonzero(cell_of_task == cell)) for cell in range(len(names)))
    sizes = np.bincount(cluster_N)
    cluster_hash_N = hash_N[cluster_N][keep]
    hash_N, bytes_N, part_N, row_N = hash_N[keep], bytes_N[keep], part_N[keep], row_N[keep]
    cell_N = cleaned_cell_N[keep]
    held_out_N = held_out(cluster_hash_N, cell_N, data.held_out_fraction, data.seed)
    train = np.flatnonzero(~held_out_N)
    segment_N = np.full(len(hash_N), len(data.segments) - 1)
    fractions = [segment.fraction for segment in data.segments]
    segment_N[train] = partition(cluster_hash_N[train], bytes_N[train], cell_N[train], fractions, data.seed)
    corpus = Corpus(
        parts=[task.part for task in tasks],
        hash_N=hash_N,
        part_N=part_N,
        row_N=row_N,
        bytes_N=bytes_N,
        cell_N=cell_N,
        held_out_N=held_out_N,
        cluster_sizes=sizes[sizes > 1],
        segment_N=segment_N,
        funnel=(*funnel_of(data, results), deduplicate),
        read_C=read_C,
        cleaned_C=cleaned_C,
        languages=languages_of(results),
    )
    _require_documents(data, corpus, names)
    return corpus


def amount(bytes_N: Ints) -> Amount:
    return Amount(documents=len(bytes_N), bytes=int(bytes_N.sum()))


def _require_each_cell(data: DataSpec, results: list[CleanResult], cell_of_task: Ints, cell_N: Ints, keep: Mask) -> None:
    for cell, name in enumerate(cells(data)):
        of_cell = cell_N == cell
        if (of_cell & keep).any():
            continue
        dropped = int(of_cell.sum())
        duplicates = StageCount("deduplicate", dropped, drops={"duplicate": dropped} if dropped else {})
        funnel = (*funnel_of(data, (results[task] for task in np.flatnonzero(cell_of_task == cell))), duplicates)
        taker = who_took_the_last(funnel)
        first = next(i for i, s in enumerate(data.sources) if (s.language, s.domain) == name)
        raise NotEnoughData(
            f"{data.sources[first].path}: no document is left of {name[0]}/{name[1]} {left_out(funnel)}"
            + (f"; {taker}" if taker else ""),
            pointer=f"/data_pipeline/sources/{first}/path",
        )


def _require_documents(data: DataSpec, corpus: Corpus, names: list[tuple[str, str]]) -> None:
    for cell, name in enumerate(names):
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
            f"only one document is left {left_out(corpus.funnel)}; at least two are needed, one of them held out to measure on."
            " A text file of up to 64 KiB is one document: split it, or use JSON lines",
            pointer="/data_pipeline/sources/0/path",
        )

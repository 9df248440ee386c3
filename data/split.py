"""From the documents that passed cleaning to a corpus: duplicates go, some are held out, what overlaps them goes, the rest is
cut into segments of the curriculum."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.aside import keep_aside
from data.columns import filtered, new_column, spans, write_columns
from data.corpus import Corpus, Documents, cells
from data.decontamination.choose import decontaminate
from data.decontamination.overlaps import ReferenceSet
from data.dedup.clusters import Duplicates, find_duplicates
from data.dropped import gather_dropped
from data.errors import NotEnoughData
from data.executors import Executor
from data.files import U64
from data.funnel import Funnel, funnel_of, languages_of, left_out, read_of, who_took_the_last
from data.report import ReferenceFigures
from data.selection import Ints, Mask, held_out, partition
from data.spec import DataSpec
from data.stages.base import StageCount
from data.tasks import CleanResult, CleanTask


def make_corpus(
    data: DataSpec,
    tasks: list[CleanTask],
    results: list[CleanResult],
    benchmarks: list[ReferenceSet],
    folder: Path,
    dropped: Path,
    executor: Executor,
    pulse: Callable[[], None],
) -> Corpus:
    """
    Args:
        results: of the tasks, in their order.
        benchmarks: test sets that training documents must not overlap.
        folder: for what further tasks write; the same input goes on with what is there.
        dropped: where documents are kept aside, if they are.
        pulse: called after each of them; what it raises ends the work.

    Raises:
        NotEnoughData: a cell has no documents left, or none for a segment, or nothing is held out.
    """
    names = list(cells(data))
    cell_P = np.array([names.index((task.source.language, task.source.domain)) for task in tasks])
    cleaned = Documents.of_parts([task.part for task in tasks], cell_P, folder / "cleaned")
    duplicates = find_duplicates(data.deduplicate, cleaned, folder / "duplicates", executor, pulse)
    _require_each_cell(data, results, cell_P, cleaned, duplicates)

    kept = cleaned.take(duplicates.keep, folder / "kept")
    cluster_hash_N = _cluster_hashes(cleaned, duplicates, folder)
    held_out_N = new_column(folder / "held_out", np.bool_, len(kept))
    held_out(cluster_hash_N, kept.cell_N, data.held_out_fraction, data.seed, out=held_out_N)
    funnel = (*funnel_of(data, results), duplicates.count(cleaned))
    figures: tuple[ReferenceFigures, ...] = ()
    asides = [duplicates.aside(cleaned)] if data.keep_dropped else []
    if data.decontaminate is not None:
        found = decontaminate(data.decontaminate, benchmarks, kept, held_out_N, folder / "overlaps", executor, pulse)
        _require_training(data, kept, held_out_N, found.keep)
        funnel, figures, asides = (*funnel, found.count), found.figures, [*asides, found.aside]
        kept = kept.take(found.keep, folder / "decontaminated")
        cluster_hash_N = filtered(folder / "decontaminated" / "cluster_hash", cluster_hash_N, found.keep)
        held_out_N = filtered(folder / "decontaminated" / "held_out", held_out_N, found.keep)
    clusters, largest_cluster = duplicates.sizes(folder)
    corpus = Corpus(
        parts=kept.parts,
        folder=kept.folder,
        hash_N=kept.hash_N,
        part_N=kept.part_N,
        row_N=kept.row_N,
        bytes_N=kept.bytes_N,
        cell_N=kept.cell_N,
        held_out_N=held_out_N,
        segment_N=_segments(data, kept, cluster_hash_N, held_out_N, folder),
        clusters=clusters,
        largest_cluster=largest_cluster,
        funnel=funnel,
        read_C=tuple(read_of(results[task] for task in np.flatnonzero(cell_P == cell)) for cell in range(len(names))),
        cleaned_C=cleaned.amounts(len(names)),
        decontamination=figures,
        languages=languages_of(results),
    )
    _require_documents(data, corpus)
    if data.keep_dropped:
        gather_dropped(cleaned.parts, dropped)
        keep_aside(asides, [task.source.domain for task in tasks], dropped, executor, pulse)
    return corpus


def _cluster_hashes(cleaned: Documents, duplicates: Duplicates, folder: Path) -> U64:
    """Of each document that is kept, the hash that its cluster is known by."""
    pieces = ([cleaned.hash_N[duplicates.cluster_N[span][duplicates.keep[span]]]] for span in spans(len(cleaned)))
    return write_columns(folder, {"cluster_hash": np.uint64}, pieces)["cluster_hash"]


def _segments(data: DataSpec, documents: Documents, cluster_hash_N: U64, held_out_N: Mask, folder: Path) -> Ints:
    out = new_column(folder / "segment", np.int64, len(documents))
    fractions = [segment.fraction for segment in data.segments]
    return partition(cluster_hash_N, documents.bytes_N, documents.cell_N, fractions, data.seed, held_out_N, out)


def _require_each_cell(
    data: DataSpec, results: list[CleanResult], cell_P: Ints, cleaned: Documents, duplicates: Duplicates
) -> None:
    came_C, kept_C = np.zeros((2, len(cells(data))), np.int64)
    for span in spans(len(cleaned)):
        cell_K = cleaned.cell_N[span]
        came_C += np.bincount(cell_K, minlength=len(came_C))
        kept_C += np.bincount(cell_K[duplicates.keep[span]], minlength=len(kept_C))
    empty = np.flatnonzero(kept_C == 0).tolist()
    for cell in empty:
        dropped = int(came_C[cell])
        taken = StageCount("deduplicate", dropped, drops={"duplicate": dropped} if dropped else {})
        _nothing_left(data, empty, (*funnel_of(data, (results[task] for task in np.flatnonzero(cell_P == cell))), taken))


def _nothing_left(data: DataSpec, empty: list[int], funnel: Funnel) -> None:
    """
    Args:
        funnel: of the documents of the first of the empty cells.
    """
    name = list(cells(data))[empty[0]]
    taker = who_took_the_last(funnel)
    first = next(i for i, source in enumerate(data.sources) if (source.language, source.domain) == name)
    raise NotEnoughData(
        f"{data.sources[first].path}: no document is left of {name[0]}/{name[1]} {left_out(funnel)}"
        + (f"; {taker}" if taker else "")
        + data.without(empty),
        pointer=f"/data_pipeline/sources/{first}/path",
    )


def _require_training(data: DataSpec, documents: Documents, held_out_N: Mask, keep: Mask) -> None:
    """
    Args:
        keep: of the documents, what decontamination leaves.
    """
    names = list(cells(data))
    before_C, after_C = np.zeros((2, len(names)), np.int64)
    for span in spans(len(documents)):
        cell_K, train = documents.cell_N[span], ~held_out_N[span]
        before_C += np.bincount(cell_K[train], minlength=len(names))
        after_C += np.bincount(cell_K[train & keep[span]], minlength=len(names))
    empty = np.flatnonzero((before_C > 0) & (after_C == 0)).tolist()
    for cell in empty:
        raise NotEnoughData(
            f"no training document is left of {'/'.join(names[cell])}: decontamination took the last {before_C[cell]}, which"
            f" overlap the held-out split or a test set; give other text, or a larger min_overlap{data.without(empty)}",
            pointer="/data_pipeline/decontaminate",
        )


def _require_documents(data: DataSpec, corpus: Corpus) -> None:
    names = list(cells(data))
    count_CS = np.zeros((len(names), len(data.segments)), np.int64)
    for span in spans(len(corpus)):
        train = ~corpus.held_out_N[span]
        np.add.at(count_CS, (corpus.cell_N[span][train], corpus.segment_N[span][train]), 1)
    empty = np.flatnonzero((count_CS == 0).any(axis=1)).tolist()
    for cell in empty:
        number = int(count_CS[cell].argmin())
        raise NotEnoughData(
            f"{count_CS[cell].sum()} training documents of {'/'.join(names[cell])} are too few for the curriculum: none falls"
            f" to its part of {data.segments[number].sequence_length} tokens; give more text, or fewer segments"
            f"{data.without(empty)}",
            pointer=f"/data_pipeline/curriculum/{number}",
        )
    if not corpus.held_out_N.any():
        raise NotEnoughData(
            f"only one document is left {left_out(corpus.funnel)}; at least two are needed, one of them held out to measure on."
            " A text file of up to 64 KiB is one document: split it, or use JSON lines",
            pointer="/data_pipeline/sources/0/path",
        )

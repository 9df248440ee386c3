"""From what the tasks counted to the report. Pure."""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from data.classifier.figures import ClassifierFigures
from data.columns import spans
from data.corpus import Corpus
from data.funnel import read_of
from data.manifest import SPLITS, Manifest
from data.packing import PackResult, limits_of
from data.report import (
    Amount,
    CellFlow,
    Histogram,
    LanguageTokens,
    LicenceFlow,
    Report,
    RowFill,
    Spread,
    Step,
    TextFigures,
)
from data.spec import DataSpec
from data.stages.base import StageCount
from data.tasks import CleanResult, CleanTask


def summarise(
    data: DataSpec,
    corpus: Corpus,
    manifest: Manifest,
    packed: Sequence[PackResult],
    classifiers: Sequence[ClassifierFigures] = (),
    licences: Sequence[LicenceFlow] = (),
) -> Report:
    """
    Args:
        packed: of all shards, in order.
    """
    languages: dict[str, TextFigures] = {}
    by_cell = [TextFigures()] * len(manifest.cells)
    for result in packed:
        cell = result.cell
        language = manifest.cells[cell].language
        languages[language] = languages.get(language, TextFigures()) + result.figures
        by_cell[cell] += result.figures
    return Report(
        hash=manifest.hash,
        steps=tuple(_steps(data, (*corpus.funnel, *limits_of(packed)))),
        kept=sum(map(_kept, packed), Amount()),
        cells=tuple(
            CellFlow(
                language=cell.language,
                domain=cell.domain,
                read=corpus.read_C[number],
                cleaned=corpus.cleaned_C[number],
                kept=sum((_kept(result) for result in packed if result.cell == number), Amount()),
                train=cell.train,
                held_out=cell.held_out,
            )
            for number, cell in enumerate(manifest.cells)
        ),
        licences=tuple(licences),
        languages_found=corpus.languages,
        duplicate_clusters=corpus.clusters,
        largest_cluster=corpus.largest_cluster,
        decontamination=corpus.decontamination,
        classifiers=tuple(classifiers),
        lengths=sum((figures.lengths for figures in languages.values()), Histogram()),
        rows=tuple(_fills(manifest)),
        vocab_size=manifest.vocab_size,
        vocab_size_asked=manifest.vocab_size_asked,
        tokens=tuple(LanguageTokens.of(language, languages[language]) for language in sorted(languages)),
        cell_tokens=tuple(
            LanguageTokens.of(cell.language, figures, cell.domain)
            for cell, figures in zip(manifest.cells, by_cell, strict=True)
        ),
    )


def _fills(manifest: Manifest) -> Iterator[RowFill]:
    for split, segment in product(SPLITS, range(len(manifest.segments))):
        shards = [shard for shard in manifest.shards if (shard.split, shard.segment) == (split, segment)]
        if shards:
            yield RowFill(
                split=split,
                row_length=manifest.row_length(segment),
                rows=sum(shard.rows for shard in shards),
                documents=sum(shard.documents for shard in shards),
                tokens=sum(shard.tokens for shard in shards),
            )


def _steps(data: DataSpec, funnel: Sequence[StageCount]) -> Iterator[Step]:
    domains = tuple(dict.fromkeys(source.domain for source in data.sources))
    for number, count in enumerate(funnel):
        if 1 <= number <= len(data.stages):
            yield _step(count, number, tuple(filter(data.stages[number - 1].sees, domains)))
        else:
            yield _step(count)


def _step(count: StageCount, number: int | None = None, domains: tuple[str, ...] = ()) -> Step:
    return Step(
        name=count.stage,
        number=number,
        domains=domains,
        came=Amount(documents=count.documents, bytes=count.bytes),
        drops=dict(sorted(count.drops.items())),
        examples={reason: tuple(examples) for reason, examples in sorted(count.examples.items())},
        grades={language: tuple(levels) for language, levels in sorted(count.grades.items())},
        scores={
            name: Spread(edges=score.edges, counts={key: tuple(counts) for key, counts in sorted(score.counts.items())})
            for name, score in count.scores.items()
        },
        redactions=dict(sorted(count.redactions.items())),
    )


def _kept(result: PackResult) -> Amount:
    return Amount(documents=result.figures.lengths.total, bytes=result.figures.bytes)


def licences_of(tasks: Sequence[CleanTask], results: Sequence[CleanResult], corpus: Corpus) -> tuple[LicenceFlow, ...]:
    """In the order of the sources.

    Args:
        results: of the tasks, in their order.
        corpus: whose parts are the tasks'.
    """
    licences = list(dict.fromkeys(task.source.licence for task in tasks))
    licence_P = np.array([licences.index(task.source.licence) for task in tasks])
    kept = [Amount()] * len(licences)
    for span in spans(len(corpus)):
        for number in range(len(licences)):
            sizes = corpus.bytes_N[span][licence_P[corpus.part_N[span]] == number]
            kept[number] += Amount(documents=len(sizes), bytes=int(sizes.sum()))
    flows = []
    for number, licence in enumerate(licences):
        flows.append(
            LicenceFlow(
                licence=licence,
                sources=tuple(dict.fromkeys(task.source.path for task in tasks if task.source.licence == licence)),
                read=read_of(results[task] for task in np.flatnonzero(licence_P == number).tolist()),
                kept=kept[number],
            )
        )
    return tuple(flows)

"""Training documents that overlap the held-out split or a test set are dropped: the choice, the counts, the examples."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.corpus import Documents
from data.decontamination.overlaps import Overlaps, ReferenceSet, find_overlaps
from data.decontamination.spec import DecontaminateSpec
from data.errors import SourceError
from data.executors import Executor
from data.report import ReferenceFigures
from data.selection import Mask
from data.stages.base import EXAMPLES, StageCount


@dataclass(frozen=True, slots=True)
class Contamination:
    keep: Mask
    """Of all documents, held-out ones among them."""
    count: StageCount
    figures: tuple[ReferenceFigures, ...]


def decontaminate(
    spec: DecontaminateSpec,
    benchmarks: list[ReferenceSet],
    documents: Documents,
    held_out_N: Mask,
    folder: Path,
    executor: Executor,
    pulse: Callable[[], None],
) -> Contamination:
    """
    Raises:
        SourceError: no item of a test set is long enough to be looked for.
    """
    sets = [*benchmarks, *([ReferenceSet("held_out", documents, np.flatnonzero(held_out_N))] if spec.held_out else [])]
    train = np.flatnonzero(~held_out_N)
    overlaps = find_overlaps(
        spec=spec, sets=sets, documents=documents, train=train, folder=folder, executor=executor, pulse=pulse
    )
    figures = tuple(_figures(overlaps, number, each.name) for number, each in enumerate(sets))
    for number in range(len(benchmarks)):
        if figures[number].too_short == figures[number].items:
            raise SourceError(
                f"{spec.test_sets[number].path}: no item is long enough to be looked for: it takes 8 words, or 12 characters"
                " without spaces",
                pointer=f"/data_pipeline/decontaminate/test_sets/{number}/path",
            )
    keep = np.ones(len(documents), np.bool_)
    keep[overlaps.number_K] = False
    return Contamination(keep, _count(documents, overlaps, [each.name for each in sets], len(benchmarks)), figures)


def _figures(overlaps: Overlaps, number: int, name: str) -> ReferenceFigures:
    mine_I = overlaps.set_I == number
    return ReferenceFigures(
        name=name,
        items=int(mine_I.sum()),
        too_short=int((mine_I & (overlaps.size_I == 0)).sum()),
        ngrams=int(overlaps.size_I[mine_I].sum()),
        found=int((mine_I & overlaps.found_I).sum()),
        dropped=int((overlaps.set_I[overlaps.item_K] == number).sum()),
    )


def _count(documents: Documents, overlaps: Overlaps, names: list[str], benchmarks: int) -> StageCount:
    """
    Args:
        names: of the reference sets, of which the first so many are test sets.
    """
    count = StageCount("decontaminate", len(documents), int(documents.bytes_N.sum()))
    set_K = overlaps.set_I[overlaps.item_K]
    held_out_K = set_K >= benchmarks
    for reason, mine_K in (("held_out_overlap", held_out_K), ("test_set_overlap", ~held_out_K)):
        if mine_K.any():
            count.drops[reason] = int(mine_K.sum())
            shown = np.flatnonzero(mine_K)[:EXAMPLES]
            details = [f"{overlaps.share_K[k]:.2f} of {names[set_K[k]]}" for k in shown]
            examples = documents.examples(overlaps.number_K[shown])
            count.examples[reason] = [replace(example, detail=d) for example, d in zip(examples, details, strict=True)]
    return count

"""Training documents that overlap the held-out split or a test set are dropped: the choice, the counts, the examples."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.aside import Aside, Dropped
from data.columns import new_column
from data.corpus import Documents
from data.decontamination.overlaps import Overlaps, ReferenceSet, find_overlaps
from data.decontamination.spec import DecontaminateSpec
from data.errors import SourceError
from data.executors import Executor
from data.report import ReferenceFigures
from data.selection import Ints, Mask
from data.stages.base import EXAMPLES, StageCount

_STAGE = "decontaminate"
_REASONS = ("test_set_overlap", "held_out_overlap")


@dataclass(frozen=True, slots=True)
class Contamination:
    keep: Mask
    """Of all documents, held-out ones among them."""
    count: StageCount
    figures: tuple[ReferenceFigures, ...]
    aside: Aside


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
    overlaps = find_overlaps(
        spec=spec,
        sets=sets,
        documents=documents,
        held_out_N=held_out_N,
        folder=folder,
        executor=executor,
        pulse=pulse,
    )
    figures = tuple(_figures(overlaps, number, each.name) for number, each in enumerate(sets))
    for number in range(len(benchmarks)):
        if figures[number].too_short == figures[number].items:
            raise SourceError(
                f"{spec.test_sets[number].path}: no item is long enough to be looked for: it takes 8 words, or 12 characters"
                " without spaces",
                pointer=f"/data_pipeline/decontaminate/test_sets/{number}/path",
            )
    keep = new_column(folder / "keep", np.bool_, len(documents))
    keep[:] = True
    keep[overlaps.number_K] = False
    found = _Found(documents, overlaps, sets, len(benchmarks))
    return Contamination(keep, found.count(), figures, found.aside())


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


@dataclass(frozen=True, slots=True)
class _Found:
    documents: Documents
    overlaps: Overlaps
    sets: list[ReferenceSet]
    benchmarks: int
    """So many of the sets, the first ones, are test sets."""

    def count(self) -> StageCount:
        count = StageCount(_STAGE, len(self.documents), int(self.documents.bytes_N.sum()))
        held_out_K = self._sets(self.overlaps.item_K) >= self.benchmarks
        for reason, mine_K in zip(_REASONS, (~held_out_K, held_out_K), strict=True):
            mine = np.flatnonzero(mine_K)
            if len(mine):
                count.drops[reason] = len(mine)
                shown = mine[:EXAMPLES]
                examples = self.documents.examples(self.overlaps.number_K[shown])
                details = map(self._detail, shown.tolist())
                count.examples[reason] = [replace(each, detail=said) for each, said in zip(examples, details, strict=True)]
        return count

    def aside(self) -> Aside:
        parts = [part for each in self.sets for part in each.documents.parts]
        return Aside(_STAGE, self.documents, _REASONS, parts, self._among)

    def _among(self, span: slice) -> Dropped:
        begin, end = np.searchsorted(self.overlaps.number_K, (span.start, span.stop)).tolist()
        item_K = self.overlaps.item_K[begin:end]
        set_K = self._sets(item_K)
        part_K, row_K = np.empty_like(item_K), np.empty_like(item_K)
        first_item, first_part = 0, 0
        for number, each in enumerate(self.sets):
            mine = set_K == number
            items = each.numbers[item_K[mine] - first_item]
            part_K[mine] = each.documents.part_N[items] + first_part
            row_K[mine] = each.documents.row_N[items]
            first_item, first_part = first_item + len(each.numbers), first_part + len(each.documents.parts)
        return Dropped(
            number_K=self.overlaps.number_K[begin:end],
            reason_K=(set_K >= self.benchmarks).astype(np.uint8),
            details=list(map(self._detail, range(begin, end))),
            other_part_K=part_K,
            other_row_K=row_K,
        )

    def _sets(self, item_K: Ints) -> Ints:
        return self.overlaps.set_I[item_K]

    def _detail(self, k: int) -> str:
        name = self.sets[self.overlaps.set_I[self.overlaps.item_K[k]]].name
        return f"{self.overlaps.share_K[k]:.2f} of {name}"

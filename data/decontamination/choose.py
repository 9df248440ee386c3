"""Training documents that overlap the held-out split or a test set are dropped: the choice, the counts, the examples."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.aside import Aside
from data.columns import new_column
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
    aside = _aside(documents, overlaps, sets, len(benchmarks))
    return Contamination(keep, _count(aside), figures, aside)


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


def _aside(documents: Documents, overlaps: Overlaps, sets: list[ReferenceSet], benchmarks: int) -> Aside:
    """
    Args:
        benchmarks: so many of the sets, the first ones, are test sets.
    """
    set_K = overlaps.set_I[overlaps.item_K]
    first_item_S = np.cumsum([0, *(len(each.numbers) for each in sets)])
    first_part_S = np.cumsum([0, *(len(each.documents.parts) for each in sets)])
    part_K, row_K = np.empty_like(set_K), np.empty_like(set_K)
    for number, each in enumerate(sets):
        mine = set_K == number
        items = each.numbers[overlaps.item_K[mine] - first_item_S[number]]
        part_K[mine] = each.documents.part_N[items] + first_part_S[number]
        row_K[mine] = each.documents.row_N[items]
    return Aside(
        stage="decontaminate",
        documents=documents,
        number_K=overlaps.number_K,
        reasons=("test_set_overlap", "held_out_overlap"),
        reason_K=(set_K >= benchmarks).astype(np.int64),
        details=[f"{share:.2f} of {sets[s].name}" for share, s in zip(overlaps.share_K, set_K.tolist(), strict=True)],
        other_parts=[part for each in sets for part in each.documents.parts],
        other_part_K=part_K,
        other_row_K=row_K,
    )


def _count(aside: Aside) -> StageCount:
    documents = aside.documents
    count = StageCount(aside.stage, len(documents), int(documents.bytes_N.sum()))
    for number, reason in enumerate(aside.reasons):
        mine = np.flatnonzero(aside.reason_K == number)
        if len(mine):
            count.drops[reason] = len(mine)
            shown = mine[:EXAMPLES]
            examples = zip(documents.examples(aside.number_K[shown]), shown.tolist(), strict=True)
            count.examples[reason] = [replace(example, detail=aside.details[k]) for example, k in examples]
    return count

"""From what was read to what is left: which step took how many, and which one took the last. Pure."""

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import itemgetter

from data.report import Amount
from data.spec import DataSpec
from data.stages.base import EXAMPLES, StageCount
from data.tasks import CleanResult

Funnel = tuple[StageCount, ...]
"""``sources``, the stages in order, and, where they are over, ``deduplicate`` and ``decontaminate``."""


def funnel_of(data: DataSpec, results: Iterable[CleanResult]) -> Funnel:
    """What the sources and the stages of some tasks saw, the tasks in order."""
    counts = (StageCount("sources"), *(StageCount(spec.stage) for spec in data.stages))
    for result in results:
        for mine, other in zip(counts, (result.sources, *result.stages), strict=True):
            mine.add(other)
    return counts


class FirstExamples:
    """Takes away from results, which come in any order, the examples that are not among a reason's first: what is kept of them
    does not grow with the corpus."""

    def __init__(self) -> None:
        self._holders: dict[tuple[int, str], list[tuple[int, StageCount]]] = {}

    def thin(self, result: CleanResult) -> CleanResult:
        """The result, without those for which there are enough before it; others lose theirs for it."""
        for step, count in enumerate((result.sources, *result.stages)):
            for reason in count.examples:
                holders = self._holders.setdefault((step, reason), [])
                insort(holders, (result.index, count), key=itemgetter(0))
        for (_, reason), holders in self._holders.items():
            before = list(accumulate((len(count.examples[reason]) for _, count in holders), initial=0))
            while before[len(holders) - 1] >= EXAMPLES:
                del holders.pop()[1].examples[reason]
        return result


def drops_of(funnel: Funnel) -> dict[str, int]:
    """Documents that were left out, by reason, whatever left them out."""
    drops: Counter[str] = Counter()
    for count in funnel:
        drops.update(count.drops)
    return dict(sorted(drops.items()))


def read_of(results: Iterable[CleanResult]) -> Amount:
    sources = [result.sources for result in results]
    return Amount(documents=sum(count.documents for count in sources), bytes=sum(count.bytes for count in sources))


def languages_of(results: Iterable[CleanResult]) -> dict[str, Amount]:
    """What passed the stages, by the language that the last one left it in."""
    found: dict[str, Amount] = {}
    for result in results:
        for language, passed in result.languages.items():
            found[language] = found.get(language, Amount()) + passed
    return dict(sorted(found.items()))


def left_out(funnel: Funnel) -> str:
    """``(12 read; left out: 3 duplicate, 9 too_short)``"""
    drops = ", ".join(f"{count} {reason}" for reason, count in drops_of(funnel).items())
    return f"({funnel[0].documents} read; left out: {drops})" if drops else f"({funnel[0].documents} read)"


def who_took_the_last(funnel: Sequence[StageCount]) -> str:
    """Of a funnel that ends with nothing: the last step that anything came to took all of it. Empty if nothing was read."""
    reached = [step for step in funnel if step.documents]
    if not reached:
        return ""
    last = reached[-1]
    if last.stage == "sources":
        return "every one is broken"
    if last.stage == "deduplicate":
        return f"deduplication took the last {last.documents}, which another part of the sources has too"
    return f"stage {len(reached) - 1} ({last.stage}) took the last {last.documents}"

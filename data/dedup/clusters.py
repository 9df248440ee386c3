"""Which documents are dropped for being the same, or nearly, as one that is kept."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.aside import Aside, Dropped
from data.columns import new_column, spans
from data.corpus import Documents
from data.dedup.near import find_pairs
from data.dedup.signatures import signature_path
from data.dedup.spec import DeduplicateSpec, ExactSpec
from data.dedup.union import first_of_clusters
from data.executors import Executor
from data.report import Histogram
from data.selection import Ints, Mask, longest_of_each
from data.stages.base import EXAMPLES, StageCount

_REASONS = ("duplicate", "near_duplicate")


@dataclass(frozen=True, slots=True)
class Duplicates:
    """``N`` counts the documents before any is dropped."""

    equal_N: Ints
    """The first document of the same text."""
    cluster_N: Ints
    """The first document of each document's cluster."""
    kept_N: Ints
    """The document that is kept in each one's place: itself, if it stays."""
    keep: Mask

    def sizes(self, folder: Path) -> tuple[Histogram, int]:
        """Of clusters of two or more, and of the largest.

        Args:
            folder: for what is counted.
        """
        histogram, largest = Histogram(), 0
        size_N = new_column(folder / "sizes", np.int64, len(self.keep))
        for span in spans(len(self.keep)):
            np.add.at(size_N, self.cluster_N[span], 1)
        for span in spans(len(self.keep)):
            sizes = size_N[span]
            histogram += Histogram.of(sizes[sizes > 1].tolist())
            largest = max(largest, int(sizes.max()))
        return histogram, largest if largest > 1 else 0

    def count(self, documents: Documents) -> StageCount:
        """
        Args:
            documents: that these are the duplicates among.
        """
        count = StageCount("deduplicate", len(documents), int(documents.bytes_N.sum()))
        shown: dict[str, Ints] = {reason: np.empty(0, np.int64) for reason in _REASONS}
        for span in spans(len(self.keep)):
            number_K, reason_K = self._dropped(span)
            for number, reason in enumerate(_REASONS):
                of_reason = number_K[reason_K == number]
                if len(of_reason):
                    count.drops[reason] = count.drops.get(reason, 0) + len(of_reason)
                    shown[reason] = np.append(shown[reason], of_reason)[:EXAMPLES]
        count.examples.update({reason: documents.examples(shown[reason]) for reason in sorted(count.drops)})
        return count

    def aside(self, documents: Documents) -> Aside:
        """
        Args:
            documents: that these are the duplicates among.
        """

        def among(span: slice) -> Dropped:
            number_K, reason_K = self._dropped(span)
            other_K = self.kept_N[number_K]
            return Dropped(number_K, reason_K, [], documents.part_N[other_K], documents.row_N[other_K])

        return Aside("deduplicate", documents, _REASONS, documents.parts, among)

    def _dropped(self, span: slice) -> tuple[Ints, npt.NDArray[np.uint8]]:
        """Numbers of what does not stay, and of the reasons."""
        number_K = span.start + np.flatnonzero(~self.keep[span])
        return number_K, (self.equal_N[number_K] == number_K).astype(np.uint8)


def find_duplicates(
    spec: DeduplicateSpec | None, documents: Documents, folder: Path, executor: Executor, pulse: Callable[[], None]
) -> Duplicates:
    """What is held at once is bounded by the spec's ``memory_bytes``; what is said of each document lies in columns.

    Args:
        folder: for what is shuffled, and the columns; the same input goes on with what is there.
        pulse: called often; what it raises ends the work.
    """
    exact = ExactSpec() if spec is None else ExactSpec(memory_bytes=spec.memory_bytes)
    count, memory = len(documents), exact.memory_bytes
    same = find_pairs(exact, [documents.folder / "hash_N"], [count], folder / "exact", executor, pulse)
    equal_N = first_of_clusters(count, same, folder / "equal", memory, pulse)
    cluster_N = equal_N
    if spec is not None and not isinstance(spec, ExactSpec):
        files = list(map(signature_path, documents.parts))
        alike = find_pairs(spec, files, documents.of_each_part(), folder / "near", executor, pulse)
        cluster_N = first_of_clusters(count, chain(_pairs(equal_N), alike), folder / "clusters", memory, pulse)
    kept_N = _kept(spec, documents, equal_N, cluster_N, folder)
    keep = new_column(folder / "keep", np.bool_, count)
    for span in spans(count):
        keep[span] = kept_N[span] == np.arange(span.start, span.stop)
    return Duplicates(equal_N, cluster_N, kept_N, keep)


def _pairs(first_N: Ints) -> Iterator[Ints]:
    """Of each document with the first of its own, where that is another."""
    for span in spans(len(first_N)):
        number = span.start + np.flatnonzero(first_N[span] != np.arange(span.start, span.stop))
        yield np.stack([number, first_N[number]], axis=1)


def _kept(spec: DeduplicateSpec | None, documents: Documents, equal_N: Ints, cluster_N: Ints, folder: Path) -> Ints:
    if spec is None:
        kept_N = new_column(folder / "kept", np.int64, len(documents))
        for span in spans(len(documents)):
            kept_N[span] = np.arange(span.start, span.stop)
        return kept_N
    if isinstance(spec, ExactSpec) or spec.keep == "all":
        return equal_N
    return cluster_N if spec.keep == "first" else _longest(documents, equal_N, cluster_N, folder)


def _longest(documents: Documents, equal_N: Ints, cluster_N: Ints, folder: Path) -> Ints:
    """The longest of the different documents of each one's cluster, and of equally long ones the first."""
    # Of those seen, at the number of the cluster's first document.
    longest_N = new_column(folder / "longest", np.int64, len(documents))
    kept_N = new_column(folder / "kept", np.int64, len(documents))
    for span in spans(len(documents)):
        longest_N[span] = np.arange(span.start, span.stop)
        different = span.start + np.flatnonzero(equal_N[span] == longest_N[span])
        best = different[longest_of_each(cluster_N[different], documents.bytes_N[different])]
        cluster = cluster_N[best]
        longer = documents.bytes_N[best] > documents.bytes_N[longest_N[cluster]]
        longest_N[cluster[longer]] = best[longer]
    for span in spans(len(documents)):
        kept_N[span] = longest_N[cluster_N[span]]
    return kept_N

"""Which documents are dropped for being the same, or nearly, as one that is kept."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.aside import Aside
from data.corpus import Documents
from data.dedup.near import find_pairs
from data.dedup.spec import DeduplicateSpec, ExactSpec
from data.dedup.union import find, union
from data.executors import Executor
from data.files import U64
from data.selection import Ints, Mask, first_alike, first_of_each, longest_of_each
from data.stages.base import StageCount


@dataclass(frozen=True, slots=True)
class Duplicates:
    """``N`` counts the documents before any is dropped."""

    cluster_N: Ints
    """The first document of each document's cluster."""
    kept_N: Ints
    """The document that is kept in each one's place: itself, if it stays."""

    @property
    def keep(self) -> Mask:
        stays: Mask = self.kept_N == np.arange(len(self.kept_N))
        return stays

    @property
    def cluster_sizes(self) -> Ints:
        """Of clusters of two or more."""
        sizes = np.bincount(self.cluster_N)
        return sizes[sizes > 1]

    def reasons(self, hash_N: U64) -> dict[str, Mask]:
        equal = ~first_of_each(hash_N)
        return {"duplicate": ~self.keep & equal, "near_duplicate": ~self.keep & ~equal}

    def count(self, documents: Documents) -> StageCount:
        """
        Args:
            documents: that these are the duplicates among.
        """
        count = StageCount("deduplicate", len(documents), int(documents.bytes_N.sum()))
        for reason, dropped in self.reasons(documents.hash_N).items():
            if dropped.any():
                count.drops[reason] = int(dropped.sum())
                count.examples[reason] = documents.examples(np.flatnonzero(dropped))
        return count

    def aside(self, documents: Documents) -> Aside:
        """
        Args:
            documents: that these are the duplicates among.
        """
        number_K = np.flatnonzero(~self.keep)
        reasons = self.reasons(documents.hash_N)
        other_K = self.kept_N[number_K]
        return Aside(
            stage="deduplicate",
            documents=documents,
            number_K=number_K,
            reasons=tuple(reasons),
            reason_K=np.argmax([dropped[number_K] for dropped in reasons.values()], axis=0),
            details=[],
            other_parts=documents.parts,
            other_part_K=documents.part_N[other_K],
            other_row_K=documents.row_N[other_K],
        )


def near_pairs(
    spec: DeduplicateSpec | None, documents: Documents, folder: Path, executor: Executor, pulse: Callable[[], None]
) -> Iterable[Ints]:
    """Pairs of documents that are nearly the same, by number; none where only copies are looked for."""
    if spec is None or isinstance(spec, ExactSpec) or not len(documents):
        return ()
    counts = np.bincount(documents.part_N, minlength=len(documents.parts)).tolist()
    return find_pairs(spec, documents.parts, counts, folder, executor, pulse)


def find_duplicates(spec: DeduplicateSpec | None, documents: Documents, pairs: Iterable[Ints]) -> Duplicates:
    """
    Args:
        pairs: of documents that are nearly the same, ``[E, 2]`` at a time, by number.
    """
    cluster_N = _clusters(documents.hash_N, pairs)
    return Duplicates(cluster_N, _kept(spec, documents, cluster_N))


def _clusters(hash_N: U64, pairs: Iterable[Ints]) -> Ints:
    """The first document of each document's cluster, ``[N]``: equal ones are in one, and those that pairs join."""
    cluster_N = first_alike(hash_N)
    for pairs_E2 in pairs:
        union(cluster_N, pairs_E2)
    return find(cluster_N, np.arange(len(cluster_N)))


def _kept(spec: DeduplicateSpec | None, documents: Documents, cluster_N: Ints) -> Ints:
    if spec is None:
        return np.arange(len(documents))
    if isinstance(spec, ExactSpec) or spec.keep == "all":
        return first_alike(documents.hash_N)
    if spec.keep == "first":
        return cluster_N
    different = np.flatnonzero(first_of_each(documents.hash_N))
    kept = different[longest_of_each(cluster_N[different], documents.bytes_N[different])]
    kept_of_cluster = np.zeros_like(cluster_N)
    kept_of_cluster[cluster_N[kept]] = kept
    return kept_of_cluster[cluster_N]

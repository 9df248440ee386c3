"""Union-find: which documents are joined, whatever the order in which pairs come.

``E`` counts pairs, ``N`` documents. A forest is an array of parents, ``parent[i] <= i``; a root is its own parent, so it is the
first of its tree.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from data.columns import new_column, spans
from data.selection import Ints

# What is held of a document of the range that is worked on, and of a pair, with room to spare (a test measures it).
_NODE_BYTES = 64
_PAIR_BYTES = 256


def find(parent_N: Ints, members: Ints) -> Ints:
    """The root of each member, of any shape. Paths are halved on the way (Tarjan and van Leeuwen 1984)."""
    at = members
    while True:
        above = parent_N[at]
        if (above == at).all():
            break
        above = parent_N[above]
        parent_N[at] = above
        at = above
    parent_N[members] = at
    return at


def union(parent_N: Ints, pairs_E2: Ints) -> None:
    """Joins the trees of every pair, in place: each root goes below the smallest that it is paired with, until all are one."""
    while len(pairs_E2):
        roots_E2 = find(parent_N, pairs_E2)
        roots_E2 = np.sort(roots_E2[roots_E2[:, 0] != roots_E2[:, 1]], axis=1)
        np.minimum.at(parent_N, roots_E2[:, 1], roots_E2[:, 0])
        pairs_E2 = roots_E2


def spanning_forest(pairs_E2: Ints) -> Ints:
    """The fewest pairs that join the same documents: each with the first of its tree, ``[fewer, 2]``, ascending."""
    documents, local_E2 = np.unique(pairs_E2, return_inverse=True)
    parent = np.arange(len(documents))
    union(parent, local_E2.reshape(-1, 2))
    root = find(parent, np.arange(len(documents)))
    below = root != np.arange(len(documents))
    return np.stack([documents[below], documents[root[below]]], axis=1)


def first_of_clusters(
    count: int, pairs: Iterable[Ints], folder: Path, memory_bytes: int, pulse: Callable[[], None] = lambda: None
) -> Ints:
    """The first document of each one's cluster, ``[N]``, a column below ``folder``. The memory is ``memory_bytes``.

    Union-find by ranges of documents, from the last to the first (node reduction: Sibeyn, External Connected Components, SWAT
    2004). A range's documents are joined among themselves; each tree then hangs from the first earlier document that it is
    paired with, and what else it is paired with is paired with that one, in an earlier range. At last, from the first range to
    the last, each document takes its root's.

    Args:
        pairs: of documents that are in one cluster, ``[E, 2]`` at a time.
        pulse: called often; what it raises ends the work.
    """
    shutil.rmtree(folder, ignore_errors=True)
    edges = _Edges(folder, max(1, memory_bytes // 2 // _NODE_BYTES), max(1, memory_bytes // 2 // _PAIR_BYTES))
    for pairs_E2 in pairs:
        edges.add(pairs_E2)
        pulse()
    first_N = new_column(folder / "first.i64", np.int64, count)
    ranges = list(spans(count, edges.size))
    for number in reversed(range(len(ranges))):
        first_N[ranges[number]] = _reduce(number, ranges[number], edges)
        pulse()
    for span in ranges:
        first = first_N[span]
        earlier = first < span.start
        first[earlier] = first_N[first[earlier]]
        pulse()
    return first_N


class _Edges:
    """Pairs of documents, later and earlier, in a file for each range of documents that has the later."""

    def __init__(self, folder: Path, size: int, most: int) -> None:
        """
        Args:
            size: documents in a range.
            most: pairs at a time.
        """
        self._folder, self.size, self.most = folder, size, most
        folder.mkdir(parents=True)

    def add(self, pairs_E2: Ints) -> None:
        for span in spans(len(pairs_E2), self.most):
            forest = spanning_forest(pairs_E2[span])
            numbers, starts = np.unique(forest[:, 0] // self.size, return_index=True)
            for number, start, end in zip(numbers.tolist(), starts, np.append(starts, len(forest))[1:], strict=True):
                with self._path(number).open("ab") as file:
                    file.write(forest[start:end].data)

    def of(self, number: int) -> Iterator[Ints]:
        """The pairs whose later document is in a range, some at a time."""
        path, at = self._path(number), 0
        if not path.is_file():
            return
        while len(pairs := np.fromfile(path, np.int64, 2 * self.most, offset=at)):
            yield pairs.reshape(-1, 2)
            at += pairs.nbytes

    def _path(self, number: int) -> Path:
        return self._folder / f"edges-{number:06}.i64"


def _reduce(number: int, span: slice, edges: _Edges) -> Ints:
    """For each of a range's documents the root of its tree, or the earlier document that the tree hangs from."""
    begin, end = span.start, span.stop
    parent = np.arange(end - begin)
    for pairs in edges.of(number):
        union(parent, pairs[pairs[:, 1] >= begin] - begin)
    for piece in spans(len(parent), edges.most):
        find(parent, np.arange(piece.start, piece.stop))
    first = np.arange(begin, end)
    for pairs in edges.of(number):
        outside = pairs[pairs[:, 1] < begin]
        np.minimum.at(first, parent[outside[:, 0] - begin], outside[:, 1])
    for pairs in edges.of(number):
        outside = pairs[pairs[:, 1] < begin]
        outside[:, 0] = first[parent[outside[:, 0] - begin]]
        edges.add(outside)
    return first[parent]

"""Union-find over arrays: which documents are joined, whatever the order in which pairs come.

``E`` counts pairs, ``N`` documents. A forest is an array of parents, ``parent[i] <= i``; a root is its own parent, so it is the
first of its tree.
"""

import numpy as np

from data.selection import Ints


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
    """The fewest pairs that join the same documents: each with the first of its tree, ``[fewer, 2]``."""
    documents, local_E2 = np.unique(pairs_E2, return_inverse=True)
    parent = np.arange(len(documents))
    union(parent, local_E2.reshape(-1, 2))
    root = find(parent, np.arange(len(documents)))
    below = root != np.arange(len(documents))
    return np.stack([documents[below], documents[root[below]]], axis=1)

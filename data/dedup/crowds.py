"""Which documents that share a key are alike, where sharing it is not enough: they are compared, and of a key that very many
share not each with every other.

``R`` counts records (a key of a document), ``D`` the documents among them, ``P`` values of a signature, ``E`` pairs.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from data.columns import spans
from data.dedup.signatures import Method, SignatureFiles, folded
from data.dedup.union import find, union
from data.files import U64, mix64
from data.selection import Ints

# A key of more documents is a crowd.
MOST_OF_A_KEY = 256
_FOLDED_TOGETHER = 4096


def alike_forest(key_R: U64, document_R: Ints, method: Method, signatures: SignatureFiles) -> Ints:
    """Pairs ``[E, 2]`` that join the documents of a key that agree: each with the first of its tree.

    Up to ``MOST_OF_A_KEY`` documents of a key are all compared. More are parted first, once by each of the method's finer keys;
    where a finer key is a crowd still, each is compared with the next ``MOST_OF_A_KEY`` by the last value of the signature. So
    comparisons are at most ``MOST_OF_A_KEY`` times the records and the finer keys. What is joined already is not compared.

    Args:
        key_R: ascending.
    """
    documents, local_R = np.unique(document_R, return_inverse=True)
    value_DP = signatures.take(documents)
    parent_D = np.arange(len(documents))
    _, size = np.unique(key_R, return_counts=True)
    crowd_R = np.repeat(size > MOST_OF_A_KEY, size)
    _join(parent_D, key_R[~crowd_R], local_R[~crowd_R], value_DP, method)
    if crowd_R.any():
        key_R, local_R = _different(parent_D, key_R[crowd_R], local_R[crowd_R], value_DP, method)
        for finer_R in method.finer(value_DP, local_R, key_R):
            order = np.lexsort((value_DP[local_R, -1], finer_R))
            _join(parent_D, finer_R[order], local_R[order], value_DP, method)
    root_D = find(parent_D, np.arange(len(documents)))
    below = np.flatnonzero(root_D != np.arange(len(documents)))
    return np.stack([documents[below], documents[root_D[below]]], axis=1)


def _join(parent_D: Ints, key_R: U64, local_R: Ints, value_DP: npt.NDArray[Any], method: Method) -> None:
    """Compares each record with the next of its key, then with the one after it, and so on."""
    at_R = np.arange(len(key_R))
    for distance in range(1, MOST_OF_A_KEY + 1):
        at_R = at_R[at_R + distance < len(key_R)]
        at_R = at_R[key_R[at_R] == key_R[at_R + distance]]
        if not len(at_R):
            return
        pair_E2 = np.stack([local_R[at_R], local_R[at_R + distance]], axis=1)
        root_E2 = find(parent_D, pair_E2)
        pair_E2 = pair_E2[root_E2[:, 0] != root_E2[:, 1]]
        union(parent_D, pair_E2[method.agree(value_DP[pair_E2[:, 0]], value_DP[pair_E2[:, 1]])])


def _different(parent_D: Ints, key_R: U64, local_R: Ints, value_DP: npt.NDArray[Any], method: Method) -> tuple[U64, Ints]:
    """Of documents of one key and of one signature only the first goes on, joined to the rest."""
    folded_D = np.concatenate([folded(method.keys(value_DP[span])) for span in spans(len(value_DP), _FOLDED_TOGETHER)])
    _, first, which = np.unique(mix64(key_R ^ folded_D[local_R]), return_index=True, return_inverse=True)
    union(parent_D, np.stack([local_R, local_R[first[which]]], axis=1))
    first.sort()
    return key_R[first], local_R[first]

"""MinHash signatures and their bands.

``N`` counts documents, ``S`` the shingles of all of them, ``P = bands * rows`` the permutations.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data.dedup.spec import MinHashSpec
from data.files import U64, key64, mix64
from data.selection import Ints, Mask

_HALF = np.uint64(32)
# Shingles whose values are computed at once: they fit a core's cache.
_SHINGLES_AT_A_TIME = 1 << 16


class MinHash:
    """Permutation ``p`` of a shingle's hash ``h`` is ``a_p h + b_p`` modulo 2^32, ``a_p`` odd (a bijection); the signature is
    each permutation's minimum over the document. Two documents agree at a place with their Jaccard similarity as probability.
    """

    dtype = np.dtype(np.uint32)

    def __init__(self, spec: MinHashSpec) -> None:
        self.width = spec.bands * spec.rows
        self.tables = spec.bands
        self.verifies = spec.min_agreement is not None
        self._needed = (spec.min_agreement or 0.0) * self.width - 1e-9
        drawn_P = mix64(np.arange(self.width, dtype=np.uint64) + key64("minhash", spec.seed))
        self._a_P = (drawn_P >> _HALF).astype(np.uint32) | np.uint32(1)
        self._b_P = drawn_P.astype(np.uint32)

    def sign(self, documents: Sequence[U64]) -> npt.NDArray[Any]:
        """Signatures ``[N, P]`` uint32 of documents given by their shingles' hashes."""
        signature_NP = np.empty((len(documents), self.width), np.uint32)
        begin = 0
        while begin < len(documents):
            end, size = begin + 1, len(documents[begin])
            while end < len(documents) and size + len(documents[end]) <= _SHINGLES_AT_A_TIME:
                size += len(documents[end])
                end += 1
            signature_NP[begin:end] = self._minima(documents[begin:end]).T
            begin = end
        return signature_NP

    def _minima(self, documents: Sequence[U64]) -> npt.NDArray[np.uint32]:
        """``[P, N]``"""
        hash_S = (np.concatenate(documents) >> _HALF).astype(np.uint32)
        start_N = np.cumsum([0, *(len(document) for document in documents[:-1])])
        value_S = np.empty_like(hash_S)
        minimum_PN = np.empty((self.width, len(documents)), np.uint32)
        for p, (a, b) in enumerate(zip(self._a_P, self._b_P, strict=True)):
            np.multiply(hash_S, a, out=value_S)
            np.add(value_S, b, out=value_S)
            np.minimum.reduceat(value_S, start_N, out=minimum_PN[p])
        return minimum_PN

    def keys(self, signature_NP: npt.NDArray[Any]) -> U64:
        """``[N, bands]``: equal where all rows of the band are."""
        rows = signature_NP.reshape(len(signature_NP), self.tables, -1)
        key_NB = np.tile(mix64(np.arange(self.tables, dtype=np.uint64)), (len(signature_NP), 1))
        for row in range(rows.shape[2]):
            key_NB = mix64(key_NB ^ rows[:, :, row])
        return key_NB

    def agree(self, one_KP: npt.NDArray[Any], other_KP: npt.NDArray[Any]) -> Mask:
        """Which of K pairs of signatures are alike enough."""
        alike: Mask = (one_KP == other_KP).sum(axis=1) >= self._needed
        return alike

    def finer(self, signature_DP: npt.NDArray[Any], local_R: Ints, key_R: U64) -> Iterator[U64]:
        """A row of each band: two documents of similarity ``s`` share none with probability ``(1 - s)^(bands - 1)``, the key's
        own band left out."""
        for band in range(self.tables):
            yield mix64(key_R ^ mix64(signature_DP[local_R, band * self.width // self.tables].astype(np.uint64)))

"""SimHash fingerprints and the tables that bring together what differs in few bits.

``N`` counts documents, ``S`` the shingles of one.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from data.dedup.spec import SimHashSpec
from data.files import U64, mix64
from data.selection import Ints, Mask

_BITS = 64


class SimHash:
    """A bit of the fingerprint is what most of the document's shingles have there."""

    dtype = np.dtype(np.uint64)
    width = 1
    verifies = True

    def __init__(self, spec: SimHashSpec) -> None:
        self._hamming = spec.hamming
        borders = [_BITS * i // spec.blocks for i in range(spec.blocks + 1)]
        blocks = [(1 << borders[i + 1]) - (1 << borders[i]) for i in range(spec.blocks)]
        # Bits that differ lie in at most ``hamming`` blocks, so some choice of the others is equal.
        self._masks = np.array([sum(chosen) for chosen in combinations(blocks, spec.blocks - spec.hamming)], np.uint64)
        self.tables = len(self._masks)
        self._finer = np.array([_pieces(mask, spec.hamming + 1) for mask in self._masks.tolist()], np.uint64)

    def sign(self, documents: Sequence[U64]) -> npt.NDArray[Any]:
        """Fingerprints ``[N, 1]`` uint64 of documents given by their shingles' hashes."""
        return np.array([_fingerprint(document) for document in documents], np.uint64).reshape(-1, 1)

    def keys(self, signature_N1: npt.NDArray[Any]) -> U64:
        """``[N, tables]``: equal where all bits of the table are."""
        return mix64(mix64(signature_N1 & self._masks) ^ self._masks)

    def agree(self, one_K1: npt.NDArray[Any], other_K1: npt.NDArray[Any]) -> Mask:
        """Which of K pairs of fingerprints are alike enough."""
        alike: Mask = np.bitwise_count(one_K1[:, 0] ^ other_K1[:, 0]) <= self._hamming
        return alike

    def finer(self, signature_D1: npt.NDArray[Any], local_R: Ints, key_R: U64) -> Iterator[U64]:
        """What a key's table leaves of the fingerprint is cut into ``hamming + 1`` pieces: in one no bit differs."""
        value_R = signature_D1[local_R, 0]
        table_R = np.zeros(len(key_R), np.int64)
        for table, mask in enumerate(self._masks):
            table_R[mix64(mix64(value_R & mask) ^ mask) == key_R] = table
        for piece in range(self._finer.shape[1]):
            yield mix64(key_R ^ mix64(value_R & self._finer[table_R, piece]))


def _pieces(mask: int, count: int) -> list[int]:
    """The bits that a mask leaves, in so many masks."""
    left = [1 << bit for bit in range(_BITS) if not mask >> bit & 1]
    return [sum(left[len(left) * i // count : len(left) * (i + 1) // count]) for i in range(count)]


def _fingerprint(hash_S: U64) -> int:
    bits = np.unpackbits(hash_S.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    most = bits.sum(axis=0, dtype=np.uint32) * 2 > len(hash_S)
    return int.from_bytes(np.packbits(most, bitorder="little").tobytes(), "little")

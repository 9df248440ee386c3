"""Signatures on disk: one file beside each part of cleaned documents, read by document number."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data.dedup.exact import Exact
from data.dedup.minhash import MinHash
from data.dedup.simhash import SimHash
from data.dedup.spec import ExactSpec, MinHashSpec, NearSpec
from data.files import U64, mix64
from data.selection import Ints, Mask


class Keyed(Protocol):
    """What documents that may be the same share. ``N`` documents; a signature has ``width`` values of ``dtype``."""

    dtype: np.dtype[Any]
    width: int
    tables: int
    verifies: bool
    """Whether sharing a key is not enough: the pair must ``agree``."""

    def keys(self, signatures: npt.NDArray[Any]) -> U64: ...


class Method(Keyed, Protocol):
    """A way to see likeness. ``D`` documents, ``K`` pairs of them, ``R`` of their keys."""

    def sign(self, documents: Sequence[U64]) -> npt.NDArray[Any]: ...

    def agree(self, one: npt.NDArray[Any], other: npt.NDArray[Any]) -> Mask: ...

    def finer(self, signatures: npt.NDArray[Any], local_R: Ints, key_R: U64) -> Iterator[U64]:
        """Further keys ``[R]``, some times over: of documents that agree and share a key, one is equal, or most likely.

        Args:
            local_R: whose key each is, among the signatures.
        """
        ...


def make_method(spec: NearSpec) -> Method:
    return MinHash(spec) if isinstance(spec, MinHashSpec) else SimHash(spec)


def make_keyed(spec: ExactSpec | NearSpec) -> Keyed:
    return Exact() if isinstance(spec, ExactSpec) else make_method(spec)


def folded(keys_NB: U64) -> U64:
    """One key out of all of a document's."""
    folded_N = np.zeros(len(keys_NB), np.uint64)
    for column in keys_NB.T:
        folded_N = mix64(folded_N ^ column)
    return folded_N


def signature_path(part: Path) -> Path:
    return part.with_suffix(".signatures")


@dataclass(frozen=True, slots=True)
class SignatureFiles:
    """The signatures of a whole corpus; documents are numbered through the files."""

    paths: list[Path]
    start: Ints
    """Number of each file's first document, and of all documents."""
    dtype: np.dtype[Any]
    width: int

    def between(self, begin: int, end: int) -> npt.NDArray[Any]:
        """``[end - begin, width]``"""
        first = int(np.searchsorted(self.start, begin, side="right")) - 1
        pieces = []
        while begin < end:
            stop = min(end, int(self.start[first + 1]))
            pieces.append(self._read(first, begin - int(self.start[first]), stop - begin))
            begin, first = stop, first + 1
        return np.concatenate(pieces)

    def take(self, documents_K: Ints) -> npt.NDArray[Any]:
        """``[K, width]`` of ascending document numbers."""
        out = np.empty((len(documents_K), self.width), self.dtype)
        borders = np.searchsorted(documents_K, self.start)
        for file in np.flatnonzero(np.diff(borders)):
            chosen = slice(borders[file], borders[file + 1])
            rows = np.memmap(self.paths[file], self.dtype, "r").reshape(-1, self.width)
            out[chosen] = rows[documents_K[chosen] - self.start[file]]
        return out

    def _read(self, file: int, row: int, rows: int) -> npt.NDArray[Any]:
        size = self.width * self.dtype.itemsize
        values = np.fromfile(self.paths[file], self.dtype, rows * self.width, offset=row * size)
        return values.reshape(rows, self.width)

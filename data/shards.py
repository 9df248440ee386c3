"""Packed rows as files of uint32: one write, one checksum, random access through the page cache.

Legend: R rows, T tokens in a row, P pieces (documents, or parts of them, within a row).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from data.best_fit import aligned, one_a_row, pack
from data.errors import ShardError
from data.files import checksum, write_atomically
from data.manifest import ShardInfo, Split

U32 = npt.NDArray[np.uint32]
_STORED = np.dtype("<u4")


def write_shard(
    directory: Path,
    file: str,
    documents: Sequence[Sequence[int] | U32],
    *,
    split: Split,
    cell: int,
    row_length: int,
    segment: int = 0,
    align: int = 1,
    one_document: bool = False,
    begun: int | None = None,
) -> ShardInfo:
    """Packs documents (token ids, marks included) into one file. Padding is token 0 and belongs to no piece.

    Where a piece begins is not stored: it follows from the lengths before it and ``align``, which the manifest keeps.

    Args:
        one_document: a row has one document, or a part of one.
        begun: how many documents the shard counts, where some of ``documents`` are further parts of one; None: each.
    """
    lengths = [len(document) for document in documents]
    rows = one_a_row(lengths, row_length) if one_document else pack(lengths, row_length, align)
    tokens_RT = np.zeros((len(rows), row_length), dtype=_STORED)
    for r, row in enumerate(rows):
        at = 0
        for piece in row:
            tokens_RT[r, at : at + piece.length] = documents[piece.document][piece.start : piece.start + piece.length]
            at += aligned(piece.length, align)
    lengths_P = np.array([piece.length for row in rows for piece in row], dtype=_STORED)
    starts = np.cumsum([0, *(len(row) for row in rows)]).astype(_STORED)
    content = tokens_RT.tobytes() + starts.tobytes() + lengths_P.tobytes()
    write_atomically(directory / file, content)
    return ShardInfo(
        file=file,
        split=split,
        cell=cell,
        segment=segment,
        documents=len(documents) if begun is None else begun,
        rows=len(rows),
        pieces=len(lengths_P),
        tokens=int(lengths_P.sum()),
        checksum=xxhash.xxh3_128_hexdigest(content),
    )


class Shard:
    """A memory-mapped shard."""

    def __init__(self, path: Path, info: ShardInfo, row_length: int, *, verify: bool = True) -> None:
        """
        Args:
            verify: read it whole and compare its checksum.

        Raises:
            ShardError: the file is missing, has another size, or does not match its checksum.
        """
        if not path.is_file():
            raise ShardError(f"{path} is missing")
        size = info.rows * row_length + info.rows + 1 + info.pieces
        if path.stat().st_size != size * _STORED.itemsize:
            raise ShardError(f"{path} is torn: {path.stat().st_size:,} bytes, not {size * _STORED.itemsize:,}")
        if verify and checksum(path) != info.checksum:
            raise ShardError(f"{path} does not match its checksum {info.checksum}")
        # Arrow lets go of the file and keeps the mapping: a data set has more shards than a process may have files open.
        with pa.memory_map(str(path)) as file:
            words = np.frombuffer(file.read_buffer(), dtype=_STORED)
        cut = info.rows * row_length
        self.tokens_RT: U32 = words[:cut].reshape(info.rows, row_length)
        self.row_start: U32 = words[cut : cut + info.rows + 1]
        self.piece_length: U32 = words[cut + info.rows + 1 :]

    def pieces(self, row: int) -> U32:
        """Lengths of a row's pieces, from left to right."""
        return self.piece_length[self.row_start[row] : self.row_start[row + 1]]

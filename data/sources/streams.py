"""Bytes of local and remote files, decompressed by suffix, never more of them at once than was asked for."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import fsspec
import pyarrow as pa

_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
COMPRESSED = tuple(_COMPRESSION)
_BLOCK_BYTES = 1 << 20
# What is asked of object storage at once: s3fs would read 50 MiB ahead, beyond the end of what a task reads.
_AHEAD_BYTES = 4 * 2**20


def open_raw(path: str) -> BinaryIO:
    if "://" not in path:
        return Path(path).open("rb")
    filesystem, name = fsspec.core.url_to_fs(path)
    # fsspec's own files cannot read a line up to a limit; the buffer can.
    return io.BufferedReader(filesystem.open(name, "rb", block_size=_AHEAD_BYTES), _BLOCK_BYTES)


def open_file(path: str) -> BinaryIO:
    """The bytes of a local or remote file, decompressed by its suffix. A cut stream raises ``OSError`` without ``errno``."""
    stream = open_raw(path)
    compression = _COMPRESSION.get(path[path.rfind(".") :])
    if compression is None:
        return stream
    inflated = pa.CompressedInputStream(pa.PythonFile(stream, "r"), compression)
    return io.BufferedReader(inflated, 1 << 18)


def lines(path: str, most: int, extent: tuple[int, int] | None) -> Iterator[tuple[str, bytes]]:
    """Lines and where each is: ``path:21``, by number, or within an extent ``path:byte 4096``, the offset of its first.

    Args:
        most: bytes; what a longer line has beyond them is passed over.
        extent: lines whose first byte lies in it, of a file that is not compressed; None: all.
    """
    start, end = extent or (0, sys.maxsize)
    number = 0
    with open_file(path) as stream:
        at = start
        if start:
            stream.seek(start - 1)
            at = _next_line(stream, start - 1, end)
        while at < end and (line := stream.readline(most)):
            number += 1
            yield f"{path}:{number}" if extent is None else f"{path}:byte {at}", line
            at += len(line)
            if not line.endswith(b"\n"):
                at = _next_line(stream, at, end)


def _next_line(stream: BinaryIO, at: int, end: int) -> int:
    """Reads on to where the next line begins, or beyond ``end``, which one endless line must not make a task for each extent
    of it do."""
    while at < end and (block := stream.readline(_BLOCK_BYTES)):
        at += len(block)
        if block.endswith(b"\n"):
            break
    return at


def begins_with(path: str, marks: tuple[bytes, ...]) -> bool:
    filesystem, name = fsspec.core.url_to_fs(path)
    begin: bytes = filesystem.cat_file(name, start=0, end=max(map(len, marks)))
    return begin.startswith(marks)


def about_bytes(error: OSError) -> bool:
    """Whether a library complains about the bytes: Arrow and FastWARC raise plain ``OSError``. Systems give an errno, time-outs
    have a class."""
    return type(error) is OSError and error.errno is None

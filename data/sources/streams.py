"""Bytes of local and remote files, decompressed by suffix, never more of them at once than was asked for."""

import io
from pathlib import Path
from typing import BinaryIO

import fsspec
import pyarrow as pa

_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
COMPRESSED = tuple(_COMPRESSION)


def open_raw(path: str) -> BinaryIO:
    if "://" not in path:
        return Path(path).open("rb")
    # fsspec's own files cannot read a line up to a limit; the buffer can.
    return io.BufferedReader(fsspec.open(path, "rb").open(), 1 << 20)


def open_file(path: str) -> BinaryIO:
    """The bytes of a local or remote file, decompressed by its suffix. A cut stream raises ``OSError`` without ``errno``."""
    stream = open_raw(path)
    compression = _COMPRESSION.get(path[path.rfind(".") :])
    if compression is None:
        return stream
    inflated = pa.CompressedInputStream(pa.PythonFile(stream, "r"), compression)
    return io.BufferedReader(inflated, 1 << 18)


def skip_line(start: bytes, stream: BinaryIO) -> None:
    """Reads on to the end of the line that begins with ``start``."""
    while start and not start.endswith(b"\n"):
        start = stream.readline(1 << 20)


def about_bytes(error: OSError) -> bool:
    """Whether a library complains about the bytes: Arrow and FastWARC raise plain ``OSError``. Systems give an errno, time-outs
    have a class."""
    return type(error) is OSError and error.errno is None

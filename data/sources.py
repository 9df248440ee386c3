"""From a source's path to its files, and from a file to its documents, one at a time.

A broken document is a value (``Bad``), not an exception: who reads decides whether it stops the work or is counted.
"""

import glob
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from data import stdlib
from data.documents import Bad, Document
from data.errors import SourceError
from data.files import checksum
from data.spec import SourceSpec

SUFFIXES = (".txt", ".py", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_GLOB = "*?["

# A longer text file is cut into pieces of at least the one at a blank line, or else of at least the other at a line's end.
_WHOLE_TEXT_BYTES = 64 * 1024
_PIECE_BYTES = 4 * 1024
_PIECE_BYTES_WITHOUT_BLANK_LINE = 64 * 1024


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of a source: ``digest`` is its content's (or, on object storage, what the store says of its version)."""

    path: str
    size: int
    digest: str
    mtime_ns: int | None = None
    """When a local file was written last; None where ``require_unchanged`` does not look."""


def list_files(source: SourceSpec, pointer: str, pulse: Callable[[], None] = lambda: None) -> list[InputFile]:
    """The files of a source, sorted by path. The content of local ones is hashed, so this takes as long as reading them.

    Args:
        pointer: where the source stands in the job spec, ``/data_pipeline/sources/0``.
        pulse: called again and again meanwhile; what it raises ends the listing.

    Raises:
        SourceError: nothing is there, it cannot be read, or its format is not known.
    """
    at = f"{pointer}/path"
    if source.path.startswith(stdlib.PREFIX):
        if source.path not in stdlib.KINDS:
            raise SourceError(f"{source.path} is not one of {', '.join(stdlib.KINDS)}", pointer=at)
        names = stdlib.modules(source.path)
        files = [_local(stdlib.root() / name, f"{stdlib.PREFIX}{name}", at, pulse) for name in names]
    elif "://" in source.path:
        files = _list_remote(source.path, at, pulse)
    else:
        files = _list_local(source.path, at, pulse)
    if not files:
        raise SourceError(f"{source.path}: no file matches", pointer=at)
    for file in files:
        if not file.path.endswith(SUFFIXES):
            raise SourceError(f"{file.path}: its format is not known; use one of {' '.join(SUFFIXES)}", pointer=at)
    if not any(file.size for file in files):
        raise SourceError(f"{source.path} is empty", pointer=at)
    return files


def _list_local(path: str, at: str, pulse: Callable[[], None]) -> list[InputFile]:
    if Path(path).is_dir():
        raise SourceError(f"{path} is a folder; name its files, such as {path.rstrip('/')}/*.jsonl", pointer=at)
    if any(c in path for c in _GLOB) and not Path(path).exists():
        found = [Path(name).absolute() for name in sorted(glob.glob(path, recursive=True))]
        return [_local(file, str(file), at, pulse) for file in found if file.is_file()]
    file = Path(path).absolute()  # the cluster's workers have folders of their own
    return [_local(file, str(file), at, pulse)]


def _local(path: Path, name: str, at: str, pulse: Callable[[], None]) -> InputFile:
    try:
        state = path.stat()  # before the hash, so that a change in between shows
        # Python's own library was installed at another time on another machine.
        mtime_ns = None if name.startswith(stdlib.PREFIX) else state.st_mtime_ns
        return InputFile(name, state.st_size, checksum(path, pulse), mtime_ns)
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist", pointer=at) from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", pointer=at) from error


def _list_remote(path: str, at: str, pulse: Callable[[], None]) -> list[InputFile]:
    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
        names = filesystem.glob(inner) if any(c in inner for c in _GLOB) else [inner]
        files = []
        for name in sorted(names):
            pulse()
            size, digest = int(filesystem.size(name) or 0), str(filesystem.ukey(name))
            files.append(InputFile(filesystem.unstrip_protocol(name), size, digest))
        return files
    except ImportError as error:  # fsspec's own words: "Install s3fs to access S3"
        raise SourceError(f"{path}: {error}", pointer=at) from error
    except ValueError as error:  # an unknown protocol
        raise SourceError(f"{path}: {error}", pointer=at) from error
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist", pointer=at) from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}", pointer=at) from error


def require_unchanged(file: InputFile) -> None:
    """Call it when a file has been read: what was read is what was listed. Object storage is not asked again.

    Raises:
        SourceError: a local file's size or time, and its content, are others than when it was listed. It has no pointer.
        OSError: the file has gone.
    """
    if file.mtime_ns is None:
        return
    path = Path(file.path)
    state = path.stat()
    # A file that was only touched, or copied to another machine, has its content still.
    if (state.st_size, state.st_mtime_ns) != (file.size, file.mtime_ns) and checksum(path) != file.digest:
        raise SourceError(f"{file.path} changed while it was read; start again when nothing writes to it")


def read_file(file: InputFile, source: SourceSpec, max_bytes: int) -> Iterator[Document | Bad]:
    """The documents of one file in order, and what is broken in it. Memory: one document, or one Parquet batch.

    Args:
        max_bytes: a larger document, as it lies in the file, is bad; no more of it than this is ever in memory.

    Raises:
        OSError: the file has gone or its storage does not answer; another attempt may do better.
        SourceError: Arrow cannot read what a Parquet file holds. It has no pointer; the caller knows the source's.
    """
    if file.path.startswith(stdlib.PREFIX):
        yield from _read_stdlib(file, source, max_bytes)
    elif file.size == 0:
        return
    elif file.path.endswith(".parquet"):
        yield from _read_parquet(file, source, max_bytes)
    elif ".jsonl" in file.path:
        yield from _read_lines(file, source, max_bytes)
    elif file.path.endswith(".txt") and file.size > _WHOLE_TEXT_BYTES:
        yield from _read_pieces(file, source, max_bytes)
    else:
        yield from _read_text(file, source, max_bytes)


def _read_stdlib(file: InputFile, source: SourceSpec, max_bytes: int) -> Iterator[Document | Bad]:
    try:
        for name, text in stdlib.texts(source.path, file.path.removeprefix(stdlib.PREFIX)):
            if len(text.encode()) > max_bytes:
                yield _oversized(name, max_bytes)
            else:
                yield Document(text, name, source.language, source.domain)
    except UnicodeDecodeError as error:
        yield _not_utf8(file.path, error)
    except SyntaxError as error:
        yield Bad("not_python", f"{file.path}:{error.lineno}: not Python: {error.msg}")


def _read_text(file: InputFile, source: SourceSpec, max_bytes: int) -> Iterator[Document | Bad]:
    with _open(file.path) as stream:
        raw = stream.read(max_bytes + 1)
    if len(raw) > max_bytes:
        yield _oversized(file.path, max_bytes)
        return
    yield _decode(raw, file.path, source)


def _read_pieces(file: InputFile, source: SourceSpec, max_bytes: int) -> Iterator[Document | Bad]:
    """A long text: the pieces' bytes, one after another, are the file's. A piece is named by its first line."""
    piece, first, number = bytearray(), 1, 0
    with _open(file.path) as stream:
        while line := stream.readline(max_bytes + 1):
            number += 1
            piece += line
            where = f"{file.path}:{first}"
            if len(piece) > max_bytes:
                yield _oversized(where, max_bytes)
                _skip_line(line, stream)
            elif len(piece) >= (_PIECE_BYTES_WITHOUT_BLANK_LINE if line.strip() else _PIECE_BYTES):
                yield _decode(bytes(piece), where, source)
            else:
                continue
            piece.clear()
            first = number + 1
    if piece.strip():
        yield _decode(bytes(piece), f"{file.path}:{first}", source)


def _skip_line(start: bytes, stream: BinaryIO) -> None:
    """Reads on to the end of the line that begins with ``start``."""
    while start and not start.endswith(b"\n"):
        start = stream.readline(1 << 20)


def _read_lines(file: InputFile, source: SourceSpec, max_bytes: int) -> Iterator[Document | Bad]:
    number = 0
    with _open(file.path) as stream:
        try:
            while line := stream.readline(max_bytes + 1):
                number += 1
                where = f"{file.path}:{number}"
                if len(line) > max_bytes and not line.endswith(b"\n"):
                    yield _oversized(where, max_bytes)
                    _skip_line(line, stream)
                elif line.strip():
                    yield _parse(line, where, source)
        except OSError as error:
            if not _is_arrows(error):
                raise
            yield Bad("broken_compression", f"{file.path}: cannot be decompressed after line {number}: {error}")


def _parse(line: bytes, where: str, source: SourceSpec) -> Document | Bad:
    decoded = _decode(line, where, source)
    if isinstance(decoded, Bad):
        return decoded
    try:
        value = json.loads(decoded.text)
    except json.JSONDecodeError as error:
        return Bad("broken_json", f"{where}: not JSON: {error.msg} at column {error.colno}")
    except ValueError as error:  # an integer of more digits than Python converts
        return Bad("broken_json", f"{where}: not JSON that can be read: {error}")
    except RecursionError:
        return Bad("broken_json", f"{where}: not JSON that can be read: it is nested too deep")
    if not isinstance(value, dict) or source.text_field not in value:
        has = f"it has {', '.join(sorted(value)[:8]) or 'none'}" if isinstance(value, dict) else "it is not an object"
        return Bad("no_text_field", f"{where}: no field {source.text_field!r}; {has}", "text_field")
    return _with_url(_text_value(value[source.text_field], where, source), value.get(source.url_field), where, source)


def _text_value(value: Any, where: str, source: SourceSpec) -> Document | Bad:
    if not isinstance(value, str):
        return Bad("not_text", f"{where}: field {source.text_field!r} is {type(value).__name__}, not text", "text_field")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # an escaped half of a surrogate pair
        return Bad("broken_utf8", f"{where}: character {error.start} is half of a surrogate pair")
    return Document(value, where, source.language, source.domain)


def _with_url(document: Document | Bad, url: Any, where: str, source: SourceSpec) -> Document | Bad:
    """``url`` is what ``url_field`` holds; None where there is no such field, which is in order."""
    if isinstance(document, Bad) or url is None:
        return document
    if not isinstance(url, str):
        return Bad("not_text", f"{where}: field {source.url_field!r} is {type(url).__name__}, not text", "url_field")
    document.url = url.encode(errors="replace").decode()  # half of a surrogate pair is no character
    return document


def _read_parquet(file: InputFile, source: SourceSpec, max_bytes: int) -> Iterator[Document | Bad]:
    row = 0
    with _open_raw(file.path) as stream:
        try:
            parquet = pq.ParquetFile(stream)
            names = parquet.schema_arrow.names
            if source.text_field not in names:
                has = ", ".join(names[:8])
                yield Bad("no_text_field", f"{file.path}: no column {source.text_field!r}; it has {has}", "text_field")
                return
            if source.url_field is not None and source.url_field not in names:
                has = ", ".join(names[:8])
                yield Bad("no_url_field", f"{file.path}: no column {source.url_field!r}; it has {has}", "url_field")
                return
            columns = [name for name in (source.text_field, source.url_field) if name is not None]
            for batch in parquet.iter_batches(batch_size=256, columns=columns):
                at = [batch.schema.names.index(name) for name in columns]
                for text, *url in zip(*(batch.column(i) for i in at), strict=True):
                    row += 1
                    yield _parquet_value(text, url[0] if url else None, f"{file.path}:row {row}", source, max_bytes)
        except pa.ArrowInvalid as error:
            yield Bad("broken_parquet", f"{file.path}: not Parquet that can be read: {error}")
        except pa.ArrowException as error:
            raise SourceError(f"{file.path} cannot be read as Parquet after row {row}: {error}") from error
        except OSError as error:
            if not _is_arrows(error):
                raise
            yield Bad("broken_parquet", f"{file.path}: unreadable after row {row}: {error}")


def _parquet_value(text: Any, url: Any, where: str, source: SourceSpec, max_bytes: int) -> Document | Bad:
    try:
        document = _text_value(text.as_py(), where, source)
        document = _with_url(document, None if url is None else url.as_py(), where, source)
    except UnicodeDecodeError as error:
        return _not_utf8(where, error)
    large = isinstance(document, Document) and len(document.text.encode()) > max_bytes
    return _oversized(where, max_bytes) if large else document


def _is_arrows(error: OSError) -> bool:
    """Whether Arrow complains about the bytes: it raises plain ``OSError``. Systems give an errno, time-outs have a class."""
    return type(error) is OSError and error.errno is None


def _open_raw(path: str) -> BinaryIO:
    if "://" not in path:
        return Path(path).open("rb")
    # fsspec's own files cannot read a line up to a limit; the buffer can.
    return io.BufferedReader(fsspec.open(path, "rb").open(), 1 << 20)


def _open(path: str) -> BinaryIO:
    """The bytes of a local or remote file, decompressed by its suffix. A cut stream raises ``OSError`` without ``errno``."""
    stream = _open_raw(path)
    compression = _COMPRESSION.get(path[path.rfind(".") :])
    if compression is None:
        return stream
    inflated = pa.CompressedInputStream(pa.PythonFile(stream, "r"), compression)
    return io.BufferedReader(inflated, 1 << 18)


def _decode(raw: bytes, where: str, source: SourceSpec) -> Document | Bad:
    if b"\0" in raw:
        return Bad("binary", f"{where}: binary, not text (a zero byte at {raw.index(0)})")
    try:
        return Document(raw.decode("utf-8-sig"), where, source.language, source.domain)
    except UnicodeDecodeError as error:
        return _not_utf8(where, error)


def _not_utf8(where: str, error: UnicodeDecodeError) -> Bad:
    return Bad("broken_utf8", f"{where}: not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}")


def _oversized(where: str, max_bytes: int) -> Bad:
    return Bad("oversized", f"{where}: a document larger than max_document_bytes ({max_bytes:,})", "max_document_bytes")

"""From a source's path to its files."""

import glob
import os
import platform
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec

from data import stdlib
from data.digests import Digests
from data.errors import SourceError
from data.files import checksum
from data.sources.streams import COMPRESSED
from data.sources.web import WEB_LIBRARIES, is_web, require_web
from data.spec import SourceSpec

FORMATS = (".txt", ".py", ".jsonl", ".html", ".htm", ".warc")
SUFFIXES = (*FORMATS, *(f"{suffix}{packed}" for suffix in FORMATS for packed in COMPRESSED), ".parquet")
_GLOB = "*?["
# Of S3, Google's, Azure's and web servers' answers, and of file systems'.
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "Last-Modified", "LastModified", "last_modified", "updated", "mtime", "created")
_ENTERED_ANYWHERE = (".jsonl", ".txt", ".parquet")
# What one task reads of a larger file.
_EXTENT_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of a source: ``digest`` is its content's (or, on object storage, what the store says of its version)."""

    path: str
    size: int
    digest: str
    mtime_ns: int | None = None
    """When a local file was written last; None of others."""
    extent: tuple[int, int] | None = None
    """Bytes of it, begin and end: lines and row groups whose first byte is among them are read. None: all of it."""

    @property
    def bytes(self) -> int:
        """How much of it is read."""
        return self.size if self.extent is None else self.extent[1] - self.extent[0]


def list_files(source: SourceSpec, pointer: str, digests: Digests | None = None) -> list[InputFile]:
    """The files of a source, sorted by path. The content of local ones is hashed, which takes as long as reading them.

    Args:
        pointer: where the source stands in the job spec, ``/data_pipeline/sources/0``.
        digests: of files that were hashed before; its ``pulse`` is called again and again.

    Raises:
        SourceError: nothing is there, it cannot be read, or its format is not known.
    """
    at = f"{pointer}/path"
    digests = digests or Digests()
    if source.path.startswith(stdlib.PREFIX):
        if source.path not in stdlib.KINDS:
            raise SourceError(f"{source.path} is not one of {', '.join(stdlib.KINDS)}", pointer=at)
        names = stdlib.modules(source.path)
        files = [_local(stdlib.root() / name, f"{stdlib.PREFIX}{name}", at, digests) for name in names]
    elif "://" in source.path:
        files = _list_remote(source.path, at, digests)
    else:
        files = _list_local(source.path, at, digests)
    if not files:
        raise SourceError(f"{source.path}: no file matches", pointer=at)
    for file in files:
        if not file.path.endswith(SUFFIXES):
            raise SourceError(f"{file.path}: its format is not known; use one of {_known()}", pointer=at)
    if any(is_web(file.path) for file in files):
        require_web(at)
    if not any(file.size for file in files):
        raise SourceError(f"{source.path} is empty", pointer=at)
    return files


def _known() -> str:
    return f"{' '.join(FORMATS)} (each also with {' or '.join(COMPRESSED)}) .parquet"


def _list_local(path: str, at: str, digests: Digests) -> list[InputFile]:
    if Path(path).is_dir():
        raise SourceError(f"{path} is a folder; name its files, such as {path.rstrip('/')}/*.jsonl", pointer=at)
    if any(c in path for c in _GLOB) and not Path(path).exists():
        found = [Path(name).absolute() for name in sorted(glob.glob(path, recursive=True))]
        return [_local(file, str(file), at, digests) for file in found if file.is_file()]
    file = Path(path).absolute()  # the cluster's workers have folders of their own
    return [_local(file, str(file), at, digests)]


def _local(path: Path, name: str, at: str, digests: Digests) -> InputFile:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{os.fsencode(path)!r}: its name is not UTF-8; rename it", pointer=at) from error
    try:
        state = path.stat()  # before the hash, so that a change in between shows
        # Python's own library was installed at another time on another machine.
        mtime_ns = None if name.startswith(stdlib.PREFIX) else state.st_mtime_ns
        return InputFile(name, state.st_size, digests.of(path, state), mtime_ns)
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist", pointer=at) from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", pointer=at) from error


def _list_remote(path: str, at: str, digests: Digests) -> list[InputFile]:
    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
        names = filesystem.glob(inner) if any(c in inner for c in _GLOB) else [inner]
        files = []
        for name in sorted(names):
            digests.pulse()
            size, digest = _version(filesystem, name)
            if size is None:
                raise SourceError(f"{path}: its storage does not say how large {name} is", pointer=at)
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


def _version(filesystem: Any, name: str) -> tuple[int | None, str]:
    """Size, and what the storage says by which a version of an object is known from others."""
    info = filesystem.info(name)
    for field in _VERSION_FIELDS:
        if info.get(field):
            # Azure quotes its tags in one answer and not in another.
            return info["size"], f"{field} {info[field]}".replace('"', "")
    return info["size"], str(filesystem.ukey(name))


def extents(file: InputFile) -> list[InputFile]:
    """A large file of a format that can be entered anywhere, a piece at a time. Its size alone decides the borders."""
    if file.size <= _EXTENT_BYTES or not file.path.endswith(_ENTERED_ANYWHERE):
        return [file]
    borders = [*range(0, file.size, _EXTENT_BYTES), file.size]
    return [replace(file, extent=pair) for pair in pairwise(borders)]


def versions(files: Iterable[InputFile]) -> dict[str, str]:
    """Of what turns these files into documents, beside Manta itself."""
    paths = [file.path for file in files]
    found = {"unicode": unicodedata.unidata_version}
    if any(path.startswith(stdlib.PREFIX) for path in paths):
        found["python"] = platform.python_version()
    if any(is_web(path) for path in paths):
        found |= {name: metadata.version(name) for name in WEB_LIBRARIES}
    return found


def require_unchanged(file: InputFile) -> None:
    """Call it when a file has been read: what was read is what was listed.

    Raises:
        SourceError: a local file's size or time, and its content, differ from when it was listed; object storage has another
            version; Python's library is another on this machine. It has no pointer.
        OSError: the file has gone.
    """
    if file.path.startswith(stdlib.PREFIX):
        if checksum(stdlib.root() / file.path.removeprefix(stdlib.PREFIX)) != file.digest:
            raise SourceError(f"{file.path} is another on the machine that read it: use one version of Python on all")
    elif _changed(file):
        raise SourceError(f"{file.path} changed while it was read; start again when nothing writes to it")


def _changed(file: InputFile) -> bool:
    if "://" in file.path:
        filesystem, name = fsspec.core.url_to_fs(file.path)
        filesystem.invalidate_cache(name)
        return _version(filesystem, name) != (file.size, file.digest)
    state = Path(file.path).stat()
    if (state.st_size, state.st_mtime_ns) == (file.size, file.mtime_ns):
        return False
    # A file that was only touched, or copied to another machine, has its content still.
    return _digest(file.path, state.st_size, state.st_mtime_ns) != file.digest


@lru_cache(maxsize=64)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    """Each extent of a large file asks for it."""
    return checksum(Path(path))

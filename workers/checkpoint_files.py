"""The files of a checkpoint: written with their hashes, read back, and known by a manifest."""

import contextlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import xxhash
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter

MANIFEST = "manifest.json"
PARTIAL = ".partial"


@dataclass(frozen=True)
class CheckpointInfo:
    """A whole checkpoint: ``step`` optimizer steps are done in it; ``bytes`` on disk."""

    step: int
    path: Path
    bytes: int


class HashingStream(io.RawIOBase):
    """Passes writes on to ``file`` and hashes what it was given, so that what the disk holds can be compared with it."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._hash = xxhash.xxh3_128()
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self._size += len(view)
        written = 0
        while written < len(view):
            written += self._file.write(view[written:]) or 0
        return len(view)

    def tell(self) -> int:
        return self._size

    def fileno(self) -> int:
        return self._file.fileno()

    def receipt(self) -> tuple[int, str]:
        return (self._size, self._hash.hexdigest())


class _HashingFileSystem(FileSystem):
    def __init__(self) -> None:
        self.hashes: dict[str, tuple[int, str]] = {}

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        with open(path, mode, buffering=0) as file:
            stream = HashingStream(cast(io.FileIO, file))
            yield stream
            self.hashes[Path(path).name] = stream.receipt()


class HashingWriter(FileSystemWriter):
    """torch's own file system writer, with the hash of every file that it wrote."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, single_file_per_rank=True, sync_files=True)
        self.fs: _HashingFileSystem = _HashingFileSystem()

    @property
    def hashes(self) -> dict[str, tuple[int, str]]:
        return self.fs.hashes

    def metadata_hashes(self) -> dict[str, tuple[int, str]]:
        """After ``finish``: torch writes its metadata under a temporary name and renames it."""
        found = {name.removesuffix(".tmp"): receipt for name, receipt in self.hashes.items()}
        for name, receipt in found.items():
            verify(Path(self.path) / name, receipt)
        return found


def verify(path: Path, expected: tuple[int, str]) -> None:
    if (found := hash_file(path)) != expected:
        raise OSError(f"{path} reads back as {found}, {expected} was written")


def hash_file(path: Path) -> tuple[int, str]:
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return (size, digest.hexdigest())


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "files" in manifest else None


def read_info(path: Path) -> CheckpointInfo | None:
    if PARTIAL in path.name or (manifest := _read_manifest(path)) is None:
        return None
    return CheckpointInfo(manifest["step"], path, sum(file["bytes"] for file in manifest["files"].values()))


def is_whole(path: Path) -> bool:
    if (manifest := _read_manifest(path)) is None:
        return False
    try:
        return all(hash_file(path / name) == (f["bytes"], f["xxh3_128"]) for name, f in manifest["files"].items())
    except OSError:
        return False


def copy_checkpoint(source: Path, directory: Path) -> None:
    """A whole checkpoint into another run's directory, by hard links where they can be made: no file of one is ever changed.

    Copying twice changes nothing. Raises OSError where ``source`` is not whole, or the copy cannot be written.
    """
    final = directory / source.name
    if is_whole(final):
        return
    if not is_whole(source):
        raise OSError(f"{source} is no whole checkpoint")
    partial = directory / f"{source.name}.copy{PARTIAL}"
    for rest in (partial, final):
        shutil.rmtree(rest, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=_link)
    sync_directory(partial)
    partial.rename(final)
    sync_directory(directory)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-")[:8])


def put(partial: Path, name: str, value: Any) -> None:
    """Appears to the other ranks whole: written under another name, then renamed."""
    temporary = partial / f".{name}"
    temporary.write_bytes(pickle.dumps(value))
    temporary.rename(partial / name)


def write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def root_cause(error: BaseException) -> BaseException:
    """The OSError (with its errno and path) below torch's wrapping, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error

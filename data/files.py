"""Hashes and files: nothing is seen under its final name before it is whole and on disk."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

U64 = npt.NDArray[np.uint64]
TEMPORARY_PREFIX = ".tmp-"


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes ``path``'s place, synced and whole, when the block ends well, and vanishes otherwise.

    Two processes that write the same path at once do not meet; the last rename stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f"{TEMPORARY_PREFIX}{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.chmod(name, 0o644)  # mkstemp's 0600 would hide shards from the workers of another user on shared storage
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    with atomic(path) as file:
        file.write(content)


def checksum(path: Path, pulse: Callable[[], None] | None = None) -> str:
    """xxh3-128 of a file's bytes, as 32 hexadecimal digits. ``pulse`` is called after each MiB."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if pulse is not None:
                pulse()
    return digest.hexdigest()


def mix64(values: U64) -> U64:
    """Finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection of 64-bit words that scatters every bit."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key64(*parts: object) -> np.uint64:
    """A 64-bit key out of a few names and numbers."""
    return np.uint64(xxhash.xxh3_64_intdigest("\x1f".join(map(str, parts)).encode()))


def sync_directory(path: Path) -> None:
    """Makes renames within a directory last through a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

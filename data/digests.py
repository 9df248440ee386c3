"""Digests of local files, remembered: a file that is as it was when it was hashed is not read again to be hashed.

They lie in ``.digests`` beside the prepared data sets, a file for each folder that sources lie in. Whoever deletes it has all
files hashed again. Two preparations that write at once lose at most each other's memory.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import xxhash

from data.files import checksum, write_atomically

FOLDER = ".digests"
# A file that is written within one step of its file system's clock does not show it. The coarsest steps are FAT's.
_COARSEST_STEP_NS = 2 * 10**9
# Hashed between two writes of what is remembered, so that a kill costs no more.
_SAVE_BYTES = 8 * 2**30

_Entry = list[int | str]
"""Size, times of writing and of any change, inode; digest."""


class Digests:
    """Remembers within a ``with`` block, which writes it down at its end, whatever ends it.

    Args:
        folder: where; None remembers nothing.
        pulse: called again and again while a file is hashed; what it raises ends that.
    """

    def __init__(self, folder: Path | None = None, pulse: Callable[[], None] = lambda: None) -> None:
        self.pulse = pulse
        self._folder = folder
        self._known: dict[Path, dict[str, _Entry]] = {}
        self._new: defaultdict[Path, dict[str, _Entry]] = defaultdict(dict)
        self._unsaved_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._save()

    def of(self, path: Path, state: os.stat_result) -> str:
        """xxh3-128 of a file's bytes.

        Args:
            path: absolute.
            state: of the file, taken before.
        """
        if self._folder is None:
            return checksum(path, self.pulse)
        if path.parent not in self._known:
            self._known[path.parent] = _read(self._file(path.parent))
        *as_it_was, digest = self._known[path.parent].get(path.name, [""])
        if as_it_was == _signs(state):
            return str(digest)
        begin_ns = time.time_ns()
        digest = checksum(path, self.pulse)
        # Git's rule for "racily clean" files: one that had just been written may be written again and look the same.
        changed_ns = max(state.st_mtime_ns, state.st_ctime_ns)
        if changed_ns + _COARSEST_STEP_NS <= begin_ns and _signs(path.stat()) == _signs(state):
            self._new[path.parent][path.name] = [*_signs(state), digest]
            self._unsaved_bytes += state.st_size
            if self._unsaved_bytes >= _SAVE_BYTES:
                self._save()
        return digest

    def _file(self, folder: Path) -> Path:
        assert self._folder is not None
        return self._folder / f"{xxhash.xxh3_128_hexdigest(os.fsencode(folder))}.json"

    def _save(self) -> None:
        for folder, entries in self._new.items():
            try:
                there = set(os.listdir(folder))
            except OSError:  # it has gone, or may not be listed
                continue
            # Read again: another preparation may have written meanwhile.
            merged = {name: entry for name, entry in (_read(self._file(folder)) | entries).items() if name in there}
            content = json.dumps(merged).encode()
            write_atomically(self._file(folder), f"{xxhash.xxh3_128_hexdigest(content)}\n".encode() + content)
            self._known[folder] = merged
        self._new.clear()
        self._unsaved_bytes = 0


def _signs(state: os.stat_result) -> _Entry:
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _read(file: Path) -> dict[str, _Entry]:
    """What is torn, or there not at all, is nothing."""
    try:
        stated, _, content = file.read_bytes().partition(b"\n")
    except OSError:
        return {}
    with suppress(OSError):
        os.utime(file)  # it is in use: what nobody has used for long is removed
    if stated.decode(errors="replace") != xxhash.xxh3_128_hexdigest(content):
        return {}
    entries: dict[str, _Entry] = json.loads(content)
    return entries

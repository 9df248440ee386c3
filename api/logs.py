"""A job's log files as one sequence of lines that can be left and taken up again at the exact byte.

Files are ``<job>/logs/attempt-N/driver.log`` and ``rank-R.log``, append-only, each line beginning with an ISO timestamp; a line
without one belongs to the line before. Attempts follow each other; within one, files are merged by timestamp.
"""

import heapq
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from data.errors import MantaError
from service.views import View
from workers.attempt import DRIVER_RANK

CHUNK_BYTES = 64 * 1024
"""Read at once from one file; a longer line is cut."""
_ATTEMPT = re.compile(r"attempt-(\d+)")
_RANK = re.compile(r"rank-(\d+)\.log")
_STAMP = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*")
_POSITION = re.compile(r"(\d{1,9})((?:;-?\d{1,9}:\d{1,15})*)")


class InvalidPosition(MantaError):
    """The ``Last-Event-ID`` was not given out by this stream."""

    code = "invalid_position"
    status = 422


class LogLine(View):
    """One line of a log; ``rank`` -1 is the attempt's driver."""

    attempt: int
    rank: int
    text: str


@dataclass(frozen=True)
class Position:
    """How far a reader is: byte offsets by rank within the newest attempt that it has seen. As text: ``2;-1:120;0:4711``."""

    attempt: int = 0
    offsets: dict[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return ";".join([str(self.attempt), *(f"{rank}:{offset}" for rank, offset in sorted(self.offsets.items()))])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ``InvalidPosition``."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise InvalidPosition("the Last-Event-ID is not one of this log stream; start again without it")
        pairs = [pair.split(":") for pair in match[2].split(";")[1:]]
        return cls(int(match[1]), {int(rank): int(offset) for rank, offset in pairs})

    def after(self, attempt: int, rank: int, end: int) -> "Position":
        offsets = self.offsets if attempt == self.attempt else {}
        return Position(attempt, {**offsets, rank: end})


def read(
    directory: Path, position: Position, *, rank: int | None, attempt: int | None, final: bool, limit: int
) -> list[tuple[Position, LogLine]]:
    """Up to ``limit`` lines after ``position``, each with the position behind it.

    ``directory``: the job's ``logs/``. ``rank`` and ``attempt`` None: all. A last line without its newline is held back unless
    it is an older attempt's or ``final``: whoever writes it may not be done. Files that are deleted meanwhile are at their end.
    """
    lines: list[tuple[Position, LogLine]] = []
    attempts = _attempts(directory)
    for number in attempts:
        if number < position.attempt or attempt not in (None, number):
            continue
        offsets = position.offsets if number == position.attempt else {}
        files = _files(directory / f"attempt-{number}", rank)
        sources = [_lines(path, of, offsets.get(of, 0), final or number != attempts[-1]) for of, path in files]
        for _, of, end, text in itertools.islice(heapq.merge(*sources), limit - len(lines)):
            position = position.after(number, of, end)
            lines.append((position, LogLine(attempt=number, rank=of, text=text)))
        if len(lines) == limit:
            break
    return lines


def _attempts(directory: Path) -> list[int]:
    return sorted(int(match[1]) for entry in _entries(directory) if (match := _ATTEMPT.fullmatch(entry.name)))


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


def _files(directory: Path, rank: int | None) -> list[tuple[int, Path]]:
    found = []
    for path in _entries(directory):
        if path.name == "driver.log":
            found.append((DRIVER_RANK, path))
        elif match := _RANK.fullmatch(path.name):
            found.append((int(match[1]), path))
    return sorted(each for each in found if rank in (None, each[0]))


def _lines(path: Path, rank: int, offset: int, final: bool) -> Iterator[tuple[str, int, int, str]]:
    """``(timestamp, rank, offset behind the line, text)`` of each line from ``offset``; within a file in the file's order."""
    stamp = ""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        while line := file.readline(CHUNK_BYTES):
            whole = line.endswith(b"\n") or len(line) == CHUNK_BYTES
            if not whole and not final:
                return
            offset += len(line)
            text = line.decode("utf-8", errors="replace").rstrip("\r\n")
            if match := _STAMP.match(text):
                # A clock set back must not let a file overtake itself: merging asks that each source ascends.
                stamp = max(stamp, match[0])
            yield stamp, rank, offset, text

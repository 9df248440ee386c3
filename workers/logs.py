"""Log files of an attempt: whatever a process prints, also in ``<job_dir>/logs/attempt-N/<who>.log``, line by line.

Append-only, each line begins with an ISO 8601 time in UTC. Written without a buffer, so that the last words of a killed
process are there.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

TAIL_LINES = 30
_TAIL_BYTES = 64 * 1024


def log_path(job_dir: Path, attempt: int, rank: int) -> Path:
    """Of the driver for a negative rank."""
    return job_dir / "logs" / f"attempt-{attempt}" / ("driver.log" if rank < 0 else f"rank-{rank}.log")


def tail(path: Path, lines: int = TAIL_LINES) -> list[str]:
    """The last lines of a log, without line ends; of a missing file none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Until the end of the block, standard output and error go to ``path`` as well, and so does all logging from INFO up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Tee(out, file), _Tee(err, file)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        sys.stdout, sys.stderr = out, err
        os.close(file)


class _Tee:
    """A text stream that also writes whole lines, stamped, to ``file``. Everything else is the stream's."""

    def __init__(self, stream: TextIO, file: int) -> None:
        self._stream = stream
        self._file = file
        self._line = ""

    def write(self, text: str) -> int:
        *whole, self._line = (self._line + text).split("\n")
        if whole:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            with suppress(OSError):  # a full disk must not end what is being logged
                os.write(self._file, "".join(f"{now} {line}\n" for line in whole).encode(errors="replace"))
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

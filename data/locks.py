"""One at a time among the processes of a machine (and of a file system that honours ``flock``)."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

_POLL_SECONDS = 0.2


@contextmanager
def locked(path: Path, pulse: Callable[[], None]) -> Iterator[None]:
    """Holds an exclusive lock on ``path``. The kernel lets go of it when the process ends, however it ends.

    Waiting polls, and calls ``pulse`` each time: what that raises, or a signal handler, ends the wait. The file goes with the
    lock; one that a killed process left is no lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while (file := _take(path)) is None:
        pulse()
        time.sleep(_POLL_SECONDS)
    with _held(path, file):
        yield


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Whether nobody held the lock; then it is held for the block, and its file goes."""
    file = _take(path)
    if file is None:
        yield False
    else:
        with _held(path, file):
            yield True


def _take(path: Path) -> IO[str] | None:
    """None: somebody holds it."""
    while True:
        with ExitStack() as stack:
            file = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Who held it may have removed this file since it was opened: then another is the lock, or none.
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    stack.pop_all()
                    return file
            except BlockingIOError:
                return None
            except FileNotFoundError:
                continue


@contextmanager
def _held(path: Path, file: IO[str]) -> Iterator[None]:
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

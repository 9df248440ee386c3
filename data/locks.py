"""One at a time among the processes of a machine (and of a file system that honours ``flock``)."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.2


@contextmanager
def locked(path: Path, pulse: Callable[[], None]) -> Iterator[None]:
    """Holds an exclusive lock on ``path``. The kernel lets go of it when the process ends, however it ends.

    Waiting polls, and calls ``pulse`` each time: what that raises, or a signal handler, ends the wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pulse()
                time.sleep(_POLL_SECONDS)
        yield

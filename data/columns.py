"""Columns: one value a document, of all documents, in files that the system maps into memory and pages in and out.

What a process must hold does not grow with the corpus, as long as it goes through columns in spans.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

Value = TypeVar("Value", bound=np.generic)

# Documents at a time: some megabytes of what is computed on the way.
SPAN = 1 << 16


_PULSE: ContextVar[Callable[[], None]] = ContextVar("pulse", default=lambda: None)


@contextmanager
def pulsed(pulse: Callable[[], None]) -> Iterator[None]:
    """Within the block ``pulse`` is called at each span, and at each piece of columns that are written: what it raises ends
    whatever goes through them."""
    before = _PULSE.set(pulse)
    try:
        yield
    finally:
        _PULSE.reset(before)


def spans(count: int, size: int = SPAN) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``count`` documents."""
    for begin in range(0, count, size):
        _PULSE.get()()
        yield slice(begin, min(begin + size, count))


def new_column(path: Path, kind: type[Value], count: int) -> npt.NDArray[Value]:
    """A column of zeros to fill, in any order.

    Raises:
        OSError: there is no room for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    size = count * np.dtype(kind).itemsize
    with _created(path) as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)  # a mapped page without room on disk would end the process
    return _mapped(path, kind, "r+")


def write_columns(
    folder: Path, kinds: Mapping[str, type[np.generic]], pieces: Iterable[Sequence[npt.NDArray[Any]]]
) -> dict[str, npt.NDArray[Any]]:
    """Columns that are made together, to be read: of each the pieces, one behind the other."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files = [stack.enter_context(_created(folder / name)) for name in kinds]
        for piece in pieces:
            _PULSE.get()()
            for file, kind, values in zip(files, kinds.values(), piece, strict=True):
                file.write(np.ascontiguousarray(values, kind).data)
    return {name: _mapped(folder / name, kind, "r") for name, kind in kinds.items()}


def filtered(path: Path, column: npt.NDArray[Value], keep: npt.NDArray[np.bool_]) -> npt.NDArray[Value]:
    """The column of what is kept."""
    pieces = ([column[span][keep[span]]] for span in spans(len(column)))
    return write_columns(path.parent, {path.name: column.dtype.type}, pieces)[path.name]


def _created(path: Path) -> BinaryIO:
    path.unlink(missing_ok=True)  # who has mapped what was there before keeps it
    return path.open("wb")


def _mapped(path: Path, kind: type[Value], mode: Any) -> npt.NDArray[Value]:
    if not path.stat().st_size:
        return np.empty(0, kind)
    return np.asarray(np.memmap(path, kind, mode))

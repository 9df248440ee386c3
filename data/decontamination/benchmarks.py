"""Reads the test sets that training must not repeat, in tasks, before anything else is read."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data.corpus import Documents
from data.decontamination.overlaps import ReferenceSet
from data.decontamination.spec import DecontaminateSpec
from data.digests import Digests
from data.errors import SourceError
from data.executors import Executor
from data.sources import InputFile, list_files
from data.spec import DataSpec, SourceSpec
from data.tasks import CleanTask, clean_files


def list_benchmarks(spec: DecontaminateSpec | None, digests: Digests) -> list[list[InputFile]]:
    """The files of each test set.

    Raises:
        SourceError: nothing is there, it cannot be read, or its format is not known.
    """
    sets = spec.test_sets if spec is not None else ()
    return [list_files(SourceSpec(path=each.path), _pointer(number), digests) for number, each in enumerate(sets)]


def read_benchmarks(
    data: DataSpec, files: list[list[InputFile]], folder: Path, executor: Executor, pulse: Callable[[], None]
) -> list[ReferenceSet]:
    """
    Args:
        files: of each test set.
        folder: for what tasks write; the same input goes on with what is there.

    Raises:
        SourceError: a file is broken, lacks the field, or there is no item.
    """
    spec = data.decontaminate
    if spec is None:
        return []
    tasks = list(_tasks(data, spec, files, folder))
    for _ in executor.map(clean_files, tasks):
        pulse()
    if not tasks:
        return []
    cell_P = np.repeat(np.arange(len(files)), list(map(len, files)))
    items = Documents.of_parts([task.part for task in tasks], cell_P, folder / "items")
    sets = [ReferenceSet(each.title, items, np.flatnonzero(items.cell_N == s)) for s, each in enumerate(spec.test_sets)]
    for number, each in enumerate(sets):
        if not len(each.numbers):
            raise SourceError(f"{spec.test_sets[number].path} holds no item", pointer=f"{_pointer(number)}/path")
    return sets


def _tasks(data: DataSpec, spec: DecontaminateSpec, files: list[list[InputFile]], folder: Path) -> Iterator[CleanTask]:
    """A file each. What is broken is an error whatever ``on_bad_document`` says: an item that is missed is never noticed."""
    index = 0
    for number, (each, of_set) in enumerate(zip(spec.test_sets, files, strict=True)):
        for file in of_set:
            yield CleanTask(
                index=index,
                part=folder / f"items-{index:06}.arrow",
                files=(file,),
                source=SourceSpec(path=each.path, text_field=each.text_field),
                pointer=_pointer(number),
                stages=(),
                max_document_bytes=data.max_document_bytes,
                drop_bad=False,
            )
            index += 1


def _pointer(number: int) -> str:
    return f"/data_pipeline/decontaminate/test_sets/{number}"

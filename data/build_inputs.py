"""From what the tasks read to the record of the inputs. Pure."""

from collections.abc import Sequence
from itertools import groupby

from data.inputs import Input, Inputs
from data.tasks import CleanResult, CleanTask


def inputs_of(tasks: Sequence[CleanTask], results: Sequence[CleanResult]) -> Inputs:
    """
    Args:
        results: of the tasks, in their order.
    """
    read = [
        (task, file, documents)
        for task, result in zip(tasks, results, strict=True)
        for file, documents in zip(task.files, result.read, strict=True)
    ]
    files = []
    # Extents of a file follow each other.
    for _, group in groupby(read, lambda each: (each[0].pointer, each[1].path)):
        extents = list(group)
        task, file, _ = extents[0]
        files.append(
            Input(
                path=file.path,
                source=task.source.path,
                licence=task.source.licence,
                size=file.size,
                digest=file.digest,
                documents=sum(documents for *_, documents in extents),
            )
        )
    return Inputs(files=tuple(files))

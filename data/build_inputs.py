"""From what the tasks read to the record of the inputs. Pure."""

from collections.abc import Sequence

from data.inputs import Input, Inputs
from data.tasks import CleanResult, CleanTask


def inputs_of(tasks: Sequence[CleanTask], results: Sequence[CleanResult]) -> Inputs:
    """
    Args:
        results: of the tasks, in their order.
    """
    return Inputs(
        files=tuple(
            Input(
                path=file.path,
                source=task.source.path,
                licence=task.source.licence,
                size=file.size,
                digest=file.digest,
                documents=documents,
            )
            for task, result in zip(tasks, results, strict=True)
            for file, documents in zip(task.files, result.read, strict=True)
        )
    )

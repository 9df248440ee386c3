"""How the data room's steps are carried out: here, one after another. ``data/ray_executor.py`` does it on a cluster."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Executor(Protocol):
    """Applies a module-level function to tasks that pickle; results come in any order and carry their task's index.

    A task may say as ``memory_bytes`` how much it holds: no more run on a machine at once than have room. A ``MantaError`` that
    a task raises is raised here as it is. Whoever stops asking for results ends the tasks that run.
    """

    def map(self, fn: Callable[[Task], Result], shards: Sequence[Task]) -> Iterator[Result]: ...


class SerialExecutor:
    """One task after another, in this process."""

    def map(self, fn: Callable[[Task], Result], shards: Sequence[Task]) -> Iterator[Result]:
        return map(fn, shards)

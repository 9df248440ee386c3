"""What is private of Ray Data 2.60 that Manta leans on, and why. tests/data/test_compat_ray.py fails when it moves.

A preparation that is stopped ends the processes of its tasks at once. Of Ray's own ways to stop, one waits for a task's next
line of Python, and a library's loop may have none for minutes; another knows the execution only when a first result is there.
What carries a data set out can end them, so it is kept as Ray makes it.
"""

from typing import Any


class Executions:
    """What Ray Data makes to carry ``rows`` (a ``ray.data.Dataset``) out, from the moment it is there."""

    def __init__(self, rows: Any) -> None:
        self._made: list[Any] = []
        create = rows._create_executor

        def created() -> Any:
            self._made.append(create())
            return self._made[-1]

        rows._create_executor = created

    def end(self) -> None:
        """Ends the processes of tasks that run; what has ended is left as it is."""
        for execution in self._made:
            execution.shutdown(force=True)

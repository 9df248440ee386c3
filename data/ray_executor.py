"""The data room's steps on Ray Data. The caller has called ``ray.init``."""

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

# A block holds several tasks when there are many, so that Ray's bookkeeping stays small beside the work.
_MAX_BLOCKS = 1024


class RayDataExecutor:
    """One Ray task a block of tasks, on any machine of the cluster; results come as they are done.

    Every machine reads the sources and writes the data set's directory under the same paths.
    """

    def map(self, fn: Callable[[Task], Result], shards: Sequence[Task]) -> Iterator[Result]:
        if not shards:
            return
        import ray.data

        # Its plans and its remark that bars are off; what goes wrong is raised.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = -1  # one file may take longer than its half hour
        rows = ray.data.from_items(
            [{"task": pickle.dumps(task)} for task in shards], override_num_blocks=min(len(shards), _MAX_BLOCKS)
        ).map(_apply, fn_kwargs={"fn": fn})
        for row in rows.iter_rows():
            yield pickle.loads(row["result"])


def _apply(row: dict[str, Any], fn: Callable[[Any], Any]) -> dict[str, bytes]:
    return {"result": pickle.dumps(fn(pickle.loads(row["task"])))}

"""The data room's steps on Ray Data. The caller has called ``ray.init``."""

import logging
import pickle
import queue
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from data.compat_ray import Executions
from data.errors import MantaError

Task = TypeVar("Task")
Result = TypeVar("Result")

# Ray's bookkeeping is about 30 ms of CPU a block, as much as the work on a small file, so of many tasks several share a block.
# Sixteen a CPU leave the last ones short beside the whole, and work for machines that join.
_BLOCKS_PER_CPU, _FEWEST_BLOCKS, _MAX_BLOCKS = 16, 32, 1024
# How many workers or machines a block may lose before the preparation fails. Ray Data's own default is no end of them, so a
# document that kills its worker would be tried for ever.
_MAX_RETRIES = 5
_PULSE_SECONDS = 1.0


class RayDataExecutor:
    """One Ray task a block of tasks, on any machine of the cluster; results come as they are done.

    Every machine reads the sources and writes the data set's directory under the same paths. Of a block whose worker or
    machine dies, another worker does what has no marker yet.

    Args:
        pulse: called about once a second while no result comes; what it raises ends the work, tasks that run included.
    """

    def __init__(self, pulse: Callable[[], None] = lambda: None) -> None:
        self._pulse = pulse

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
        items = ray.data.from_items([{"task": pickle.dumps(task)} for task in shards], override_num_blocks=_blocks(len(shards)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this way to say it will go; this release has no other
            rows = items.map(_apply, fn_kwargs={"fn": fn}, memory=_memory(shards), max_retries=_MAX_RETRIES)
        executions = Executions(rows)
        try:
            for row in _pulsed(rows.iter_rows, self._pulse):
                result = pickle.loads(row["result"])
                if isinstance(result, MantaError):
                    raise result
                yield result
        finally:
            executions.end()


def _blocks(tasks: int) -> int:
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 0))
    return min(tasks, max(_BLOCKS_PER_CPU * cpus, _FEWEST_BLOCKS), _MAX_BLOCKS)


def _memory(shards: Sequence[Any]) -> int | None:
    """Bytes to reserve for each: at most what a machine has, or nothing would ever run."""
    import ray

    asked = max(int(getattr(task, "memory_bytes", 0)) for task in shards)
    largest = max(int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"])
    return min(asked, largest) or None


def _apply(row: dict[str, Any], fn: Callable[[Any], Any]) -> dict[str, bytes]:
    try:
        result = fn(pickle.loads(row["task"]))
    except MantaError as error:  # Ray would wrap it in an error of its own
        result = error
    return {"result": pickle.dumps(result)}


def _pulsed(items: Callable[[], Iterable[Any]], pulse: Callable[[], None]) -> Iterator[Any]:
    """Items that a thread of their own waits for, so that this one can be told to stop."""
    done: queue.Queue[tuple[Any, BaseException | None] | None] = queue.Queue()
    stopped = threading.Event()

    def gather() -> None:
        try:
            for item in items():
                done.put((item, None))
                if stopped.is_set():
                    return
            done.put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised where the items are wanted
            done.put((None, error))

    threading.Thread(target=gather, name="ray-data", daemon=True).start()
    try:
        while True:
            try:
                got = done.get(timeout=_PULSE_SECONDS)
            except queue.Empty:
                pulse()
                continue
            if got is None:
                return
            item, error = got
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()

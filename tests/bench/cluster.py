"""A Ray cluster on this machine, and what work on it takes: CPU time of all its processes, and memory of its workers."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil
import ray

from tests.bench.datatrove import Spent

Result = TypeVar("Result")
_LOOK_SECONDS = 0.25
_OBJECT_STORE_BYTES = 200 * 2**20


class Cluster:
    def __init__(self, start_seconds: float) -> None:
        self.start_seconds = start_seconds
        self.peak_worker_bytes = 0
        """The most that any worker has held since it was born."""
        self._stopped = threading.Event()

    def spend(self, work: Callable[[], Result]) -> tuple[Result, Spent]:
        """What ``work`` gives, and its time: of driver, workers and Ray itself."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        result = work()
        spent = Spent(time.perf_counter() - wall, cpu_seconds() - cpu)
        self.look()
        return result, spent

    def watch(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error, OSError):
                if "".join(process.cmdline()[:1]).startswith("ray::"):  # none of a process that ends
                    self.peak_worker_bytes = max(self.peak_worker_bytes, resident_bytes(process.pid))

    def stop(self) -> None:
        self._stopped.set()


@contextmanager
def cluster(cores: int) -> Iterator[Cluster]:
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    before = time.perf_counter()
    ray.init(
        address="local",
        num_cpus=cores,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        configure_logging=False,
    )
    made = Cluster(time.perf_counter() - before)
    thread = threading.Thread(target=made.watch, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.stop()
        thread.join()
        ray.shutdown()


def cpu_seconds() -> float:
    """Of this process and all below it, those that have ended included."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def resident_bytes(pid: int) -> int:
    """The most that a process ever held, without the memory that it shares (Ray's object store)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return (int(fields["VmHWM"].split()[0]) - int(fields["RssShmem"].split()[0])) * 1024

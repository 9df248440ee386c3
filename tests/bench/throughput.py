"""Training tokens/s through Manta against ``workers.local`` under torchrun; part of ``make bench NAME=overhead``.

Both are in mid-training at the same time, and while one of them runs all processes of the other are stopped (SIGSTOP), in
windows A B B A. The speed of a shared machine drifts by a tenth within a minute, and such windows meet the drift alike; of
whole runs one after another, the median of five pairs moved by that much. Cluster and service are up in every window; Manta's
driver and Ray's supervisor of it are stopped with its workers. A window's rate is by the wall clock, over the steps that were
reported inside it.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import psutil

BLOCKS = 5
WINDOW_SECONDS = 6.0
WARM_STEPS = 10
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class Side:
    name: str
    processes: list[psutil.Process]
    times: Callable[[], dict[int, float]]
    """Unix seconds at which each step was done, of the steps that were reported until now."""
    windows: list[tuple[float, float]] = field(default_factory=list)

    def send(self, number: signal.Signals) -> None:
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def window(self) -> None:
        self.send(signal.SIGCONT)
        started = time.time()
        time.sleep(WINDOW_SECONDS)
        self.windows.append((started, time.time()))
        self.send(signal.SIGSTOP)

    def rates(self, tokens: int) -> list[float]:
        times = self.times()
        return [rate(times, window, tokens) for window in self.windows]


def rate(times: dict[int, float], window: tuple[float, float], tokens: int) -> float:
    """Tokens a second between the first and the last step that were done in ``window``, of ``tokens`` each."""
    inside = sorted(step for step, at in times.items() if window[0] <= at <= window[1])
    assert len(inside) > 1, f"fewer than two steps in a window of {window[1] - window[0]:.1f} s"
    assert inside == list(range(inside[0], inside[-1] + 1)), f"steps are missing among {inside}"
    return tokens * (inside[-1] - inside[0]) / (times[inside[-1]] - times[inside[0]])


def block_ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Of each block A B B A: the mean of its two windows of one side over that of the other."""
    return [mean(ours[i : i + 2]) / mean(theirs[i : i + 2]) for i in range(0, len(ours), 2)]


def take_turns(ours: Side, theirs: Side) -> None:
    """Both are stopped at the start and at the end."""
    for _ in range(BLOCKS):
        for side in (ours, theirs, theirs, ours):
            side.window()


@contextmanager
def local(job: Path, prepared: Path, environment: dict[str, str], workers: int) -> Iterator[Side]:
    """``workers.local`` under torchrun, warm and stopped."""
    with tempfile.TemporaryDirectory() as out:
        (Path(out) / "prepared").symlink_to(prepared)
        metrics = Path(out) / "metrics.jsonl"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
        command += ["-m", "workers.local", str(job), "--out", out]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        launcher = subprocess.Popen(command, env=environment, **quiet)

        def times() -> dict[int, float]:
            lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
            return {line["step"]: line["time"] for line in lines if "loss" in line["values"]}

        until(lambda: max(times(), default=0) >= WARM_STEPS, launcher.poll)
        parent = psutil.Process(launcher.pid)
        side = Side("local", [parent, *parent.children(recursive=True)], times)
        side.send(signal.SIGSTOP)
        try:
            yield side
        finally:
            side.send(signal.SIGCONT)
            launcher.terminate()
            launcher.wait()


def until(done: Callable[[], bool], ended: Callable[[], object] = lambda: None) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert ended() is None, f"ended: {ended()}"
        assert time.monotonic() < deadline, f"not in {PATIENCE_SECONDS:.0f} s"
        time.sleep(0.5)

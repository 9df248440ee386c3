"""The Manta of this machine: start its service, find it, stop it and the cluster that it started."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from api.cli.console import CommandError
from api.files import locked
from api.settings import Settings

READY_SECONDS = 180.0
"""A cold start of the local cluster on a small machine takes tens of seconds."""
STOP_SECONDS = 20.0
SAME_START_SECONDS = 5.0
"""psutil adds ticks to the boot time, which moves a little with the clock."""
SERVICE_MODULE = "api.server"


class StartFailed(CommandError):
    """The service did not start; the detail ends with the last lines of its log."""

    code = "start_failed"
    status = 503


class AlreadyRunning(CommandError):
    """A service of this home runs already."""

    code = "already_running"
    status = 409


@dataclass(frozen=True)
class Service:
    """A service on record: its process and where it answers."""

    pid: int
    url: str


def recorded(settings: Settings) -> Service | None:
    """The living service of a home; None if there is no record, or its process is gone or another program's by now."""
    try:
        record = json.loads(settings.service_file.read_text())
        service = Service(pid=int(record["pid"]), url=str(record["url"]))
        started = float(record["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return service if _is_service(service.pid, started) else None


def _is_service(pid: int, started: float) -> bool:
    """Whether ``pid`` is a service that began at ``started``: a number that was given out again began at another time."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < SAME_START_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE and SERVICE_MODULE in process.cmdline()
    except psutil.Error:
        return False


def services(settings: Settings) -> list[int]:
    """Processes of every service of this home, also of one that starts and is not on record yet."""
    found = {process.pid for process in marked("MANTA_HOME", str(settings.home)) if _runs_service(process)}
    service = recorded(settings)
    return sorted(found | ({service.pid} if service else set()))


def _runs_service(process: psutil.Process) -> bool:
    try:
        return SERVICE_MODULE in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def answers(url: str) -> bool:
    """Whether the service is ready: its store is open and it can take jobs."""
    import httpx

    try:
        return httpx.get(f"{url}/readyz", timeout=5.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def command() -> list[str]:
    """-P: a folder ``api`` or ``data`` where the user happens to be is not ours."""
    return [sys.executable, "-P", "-m", SERVICE_MODULE]


def environment(settings: Settings, base: Mapping[str, str]) -> dict[str, str]:
    """``base`` and the home, spelled out: ``services`` finds the process by it."""
    return {**base, "MANTA_HOME": str(settings.home)}


def log_file(settings: Settings) -> Path:
    return settings.logs_dir / "service.log"


def launch(settings: Settings, base: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start the service in a session of its own, so that Ctrl-C here is not its end. Its output goes to ``log_file``."""
    settings.make_home()
    with log_file(settings).open("ab") as log:
        return subprocess.Popen(
            command(),
            cwd=settings.home,
            env=environment(settings, base),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_ready(
    process: "subprocess.Popen[bytes] | None",
    settings: Settings,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
    ready: Callable[[str], bool] | None = None,
) -> Service:
    """Wait until the service of this home answers ``/readyz``: ``process``, or one that was there before it.

    Raises StartFailed, with the end of its log, if none is left or it takes longer than ``READY_SECONDS``.
    """
    ready = ready or answers
    deadline = clock() + READY_SECONDS
    while clock() < deadline:
        ended = process is None or process.poll() is not None
        if ended and not services(settings):
            status = "" if process is None else f" with status {process.returncode}"
            raise StartFailed(f"the service ended{status} while it started{log_tail(settings)}")
        service = recorded(settings)
        if service is not None and ready(service.url):
            return service
        pause(0.25)
    raise StartFailed(f"the service did not get ready in {READY_SECONDS:.0f} s{log_tail(settings)}")


def start(settings: Settings) -> tuple[Service, bool]:
    """The service of this home, ready, and whether this call started it. Two calls at once start one: they take turns.

    Raises StartFailed. If the wait fails, or Ctrl-C ends it, what this call started is stopped again, and nothing else:
    a service or a cluster that was there before, perhaps with jobs on it, stays.
    """
    from api.cluster import LocalCluster

    settings.make_home()
    with locked(settings.home / "start.lock"):
        if services(settings):
            return wait_ready(None, settings), False
        cluster = LocalCluster(settings)
        had_cluster = bool(cluster.processes())
        process = launch(settings, os.environ)
        try:
            service = wait_ready(process, settings)
        except (KeyboardInterrupt, StartFailed):
            stop_process(process.pid)
            if not had_cluster and not services(settings):
                cluster.stop()
            raise
        return service, service.pid == process.pid


def log_tail(settings: Settings, lines: int = 12) -> str:
    """The end of the service's log, as the rest of a sentence; empty without a log."""
    path = log_file(settings)
    try:
        tail = path.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        return ""
    return f"; the end of {path}:\n" + "\n".join(f"  | {line}" for line in tail)


def stop_process(pid: int) -> None:
    """End a service: SIGTERM, and SIGKILL if it has not gone after ``STOP_SECONDS``. Gone already is fine."""
    try:
        process = psutil.Process(pid)
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)
    except psutil.NoSuchProcess:
        return


def stop(settings: Settings, *, keep_cluster: bool) -> dict[str, bool]:
    """Stop the service, also one that still starts, then the cluster that it started. Tells which of them was there."""
    from api.cluster import LocalCluster

    running = services(settings)
    for pid in running:
        stop_process(pid)
    cluster = LocalCluster(settings)
    had_cluster = bool(cluster.processes()) and not keep_cluster
    if not keep_cluster:
        cluster.stop()
    return {"service": bool(running), "cluster": had_cluster}


def marked(variable: str, value: str) -> list[psutil.Process]:
    """Processes of this user that were started with ``variable=value`` in their environment, this one excepted."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(variable) == value:
                found.append(process)
        except psutil.Error:
            continue
    return found


def sweep(variable: str, value: str, rounds: int = 5) -> int:
    """End every process that carries the mark, and those that they start meanwhile. Returns how many there were."""
    total = 0
    for _ in range(rounds):
        left = marked(variable, value)
        if not left:
            break
        total += len(left)
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=5)
    return total

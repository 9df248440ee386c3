"""The local Ray cluster: ``ray start --head --block`` in a session of its own, with its pid on record.

It outlives the service, which adopts it again after a restart. Nothing here imports Ray: the cluster is started by its command
and asked over HTTP. ``ray stop`` (which ends every Ray of the user) and ``address="auto"`` are never used.
"""

import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from api import ports
from api.files import locked, write_atomically
from api.settings import Settings
from data.errors import MantaError

TAG = "MANTA_CLUSTER_ID"
"""In the environment of every process of one cluster, drivers and their children too."""
START_TIMEOUT_SECONDS = 90.0
STOP_GRACE_SECONDS = 10.0
JOB_STOP_WAIT_SECONDS = 30
"""Ray kills a stopped driver after 3 s by default, which is too short for a checkpoint."""
MIN_CPUS = 4
_NOT_INHERITED = ("MANTA_TOKEN", "MANTA_RAY_", "MANTA_DATABASE_URL", "RAY_ADDRESS", "RAY_AUTH")
_SAME_START_SECONDS = 5.0  # psutil adds ticks to the boot time, which moves a little with the clock
_PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",
    "node-manager-port",
    "object-manager-port",
)
_PORT_VARIABLES = ("DASHBOARD_METRIC_PORT", "AUTOSCALER_METRIC_PORT")


class ClusterFailed(MantaError):
    """The local cluster did not start; the message ends with the last lines of its log."""

    code = "cluster_failed"
    status = 503


class ClusterRecord(BaseModel):
    """What is on disk about a running cluster."""

    model_config = ConfigDict(frozen=True)

    id: str
    pid: int
    """Leader of the cluster's session."""
    started: float
    """Unix time at which that process began: a recycled pid has another."""
    dashboard_url: str
    gcs_port: int


class LocalCluster:
    """One cluster for each ``home``. Every method may be called from any process and any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._file = settings.home / "cluster.json"
        self._lock_file = settings.home / "cluster.lock"
        self._log_file = settings.logs_dir / "cluster.log"
        self.token_file = settings.home / "ray.token"

    def record(self) -> ClusterRecord | None:
        """The cluster on record, alive or not."""
        try:
            return ClusterRecord.model_validate_json(self._file.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def alive(self) -> bool:
        record = self.record()
        return record is not None and _leader(record) is not None

    def ready(self) -> bool:
        """Whether the cluster's job API answers."""
        record = self.record()
        return record is not None and _leader(record) is not None and self._answers(record)

    def token(self) -> str:
        """The cluster's bearer token, made at the first call and kept in a file that its user alone can read.

        Ray listens on the machine's outer address even when asked for loopback, and whoever reaches it runs code as its user:
        hence a token, always.
        """
        try:
            handle = os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return self.token_file.read_text(encoding="ascii")
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(token := secrets.token_hex(32))
        return token

    def begin(self) -> ClusterRecord:
        """Adopt the cluster on record, or start one, without waiting until it answers. Raises ``ClusterFailed``."""
        self._settings.make_home()
        with locked(self._lock_file):
            record = self.record()
            if record is None or _leader(record) is None:
                self._end(record)
                record = self._start()
            return record

    def ensure(self, timeout: float = START_TIMEOUT_SECONDS, cancelled: threading.Event | None = None) -> ClusterRecord:
        """Adopt the cluster on record, or start one, and wait until its job API answers.

        Raises ``ClusterFailed`` when it exits, does not answer within ``timeout`` seconds, or ``cancelled`` is set meanwhile.
        """
        record = self.begin()
        cancelled = cancelled or threading.Event()
        deadline = time.monotonic() + timeout
        while not self._answers(record):
            if _leader(record) is None:
                raise ClusterFailed(f"the local Ray cluster exited while starting\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise ClusterFailed(
                    f"the local Ray cluster (pid {record.pid}) did not answer within {timeout:.0f} s;"
                    f" `manta down` ends it\n{self._log_tail()}"
                )
            if cancelled.wait(0.05):
                raise ClusterFailed("the wait for the local Ray cluster was cancelled")
        return record

    def stop(self) -> None:
        """End every process of the cluster, drivers and workers included, and return when none is left."""
        if not self._settings.home.is_dir():
            return
        with locked(self._lock_file):
            self._end(self.record())

    def processes(self) -> list[psutil.Process]:
        """The live processes of the cluster on record, drivers and workers included."""
        record = self.record()
        return [] if record is None else _members(record)

    def _start(self) -> ClusterRecord:
        runtime_dir = self._settings.runtime_dir
        runtime_dir.mkdir(mode=0o700, exist_ok=True)
        if runtime_dir.stat().st_uid != os.getuid() or runtime_dir.is_symlink():
            raise ClusterFailed(f"{runtime_dir} belongs to another user")
        self.token()
        identity = secrets.token_hex(8)
        with ports.picked(len(_PORTS) + len(_PORT_VARIABLES)) as picked:
            chosen = dict(zip((*_PORTS, *_PORT_VARIABLES), picked, strict=True))
        with self._log_file.open("wb") as log:
            process = subprocess.Popen(
                self._command(chosen),
                env=self._environment(identity, chosen),
                cwd=self._settings.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        record = ClusterRecord(
            id=identity,
            pid=process.pid,
            started=psutil.Process(process.pid).create_time(),
            dashboard_url=f"http://127.0.0.1:{chosen['dashboard-port']}",
            gcs_port=chosen["port"],
        )
        write_atomically(self._file, record.model_dump_json())
        return record

    def _command(self, chosen: dict[str, int]) -> list[str]:
        cpus = max(MIN_CPUS, self._settings.num_cpus or os.cpu_count() or 1)
        options = {
            "num-cpus": cpus,
            "temp-dir": self._settings.runtime_dir,
            "dashboard-host": "127.0.0.1",
            "include-dashboard": "true",
            # Ranks write their own log files; forwarding every line to the driver as well would cost a process and CPU.
            "include-log-monitor": "false",
            # 0 lets each worker take any free port; the default range is shared by all clusters of a machine.
            "min-worker-port": 0,
            "max-worker-port": 0,
            **{name: chosen[name] for name in _PORTS},
        }
        if self._settings.num_gpus is not None:
            options["num-gpus"] = self._settings.num_gpus
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        return command + [f"--{name}={value}" for name, value in options.items()]

    def _environment(self, identity: str, chosen: dict[str, int]) -> dict[str, str]:
        """What the cluster, and so every driver and worker, inherits: ours, without this service's secrets."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
        root = str(Path(__file__).resolve().parents[1])
        # A worker trains in a thread. glibc gives threads heaps of their own that it keeps returning to the kernel; a process
        # that has threads already cannot change that any more (workers.allocator).
        return (
            {"MALLOC_ARENA_MAX": "1"}
            | inherited
            | {
                TAG: identity,
                # `python -m workers.driver` must find these packages whatever directory it starts in.
                "PYTHONPATH": os.pathsep.join(filter(None, (root, inherited.get("PYTHONPATH")))),
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(self.token_file),
                "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_WAIT_SECONDS),
                # Ray starts workers at nice 15, behind everything else on the machine, its own helpers included.
                "RAY_worker_niceness": "0",
                # Draining is for pods that Kubernetes takes away; here the user said stop.
                "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
                "RAY_USAGE_STATS_ENABLED": "0",
                **{name: str(chosen[name]) for name in _PORT_VARIABLES},
            }
        )

    def _answers(self, record: ClusterRecord) -> bool:
        try:
            answer = httpx.get(
                f"{record.dashboard_url}/api/jobs/", headers={"Authorization": f"Bearer {self.token()}"}, timeout=5.0
            )
        except httpx.TransportError:
            return False
        return answer.status_code == httpx.codes.OK

    def _end(self, record: ClusterRecord | None) -> None:
        if record is None:
            return
        if members := _members(record):
            # Drivers are told as well: their session is their own, and their supervising actor dies with the cluster.
            _signal(members, psutil.Process.terminate)
            psutil.wait_procs(members, timeout=STOP_GRACE_SECONDS)
        deadline = time.monotonic() + STOP_GRACE_SECONDS
        while (members := _members(record)) and time.monotonic() < deadline:
            _signal(members, psutil.Process.kill)
            psutil.wait_procs(members, timeout=1.0)
        if members:
            raise ClusterFailed(f"could not end processes {[member.pid for member in members]} of the local Ray cluster")
        self._file.unlink(missing_ok=True)
        shutil.rmtree(self._settings.runtime_dir, ignore_errors=True)

    def _log_tail(self, lines: int = 15) -> str:
        try:
            text = self._log_file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join([*text.rstrip().splitlines()[-lines:], f"(whole log: {self._log_file})"])


def _leader(record: ClusterRecord) -> psutil.Process | None:
    """The process on record, if it is alive and still the one that was started."""
    try:
        process = psutil.Process(record.pid)
        same = abs(process.create_time() - record.started) < _SAME_START_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _members(record: ClusterRecord) -> list[psutil.Process]:
    """Live processes of the cluster: of its session, or with its tag in their environment.

    Either sign alone misses some: a driver opens a session of its own, and a renamed Ray worker (``ray::...``) has written its
    title over its environment. A session's number is not given out again while one of its members lives.
    """
    recycled = psutil.pid_exists(record.pid) and _leader(record) is None and not _is_zombie(record.pid)
    members = []
    for process in psutil.process_iter():
        try:
            if process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            in_session = not recycled and os.getsid(process.pid) == record.pid
            if in_session or process.environ().get(TAG) == record.id:
                members.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, PermissionError):
            continue
    return members


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(processes: list[psutil.Process], send: object) -> None:
    assert callable(send)
    for process in processes:
        try:
            send(process)
        except psutil.NoSuchProcess:
            continue

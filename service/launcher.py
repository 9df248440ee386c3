"""How the service reaches a cluster. One protocol; ``api`` gives it an implementation (Ray's job API, others later)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from data.errors import MantaError

LaunchState = Literal["pending", "running", "succeeded", "failed", "stopped", "unknown"]
"""``unknown``: the cluster answers, and has no submission of that id."""

TERMINAL: frozenset[LaunchState] = frozenset({"succeeded", "failed", "stopped"})


class LauncherUnavailable(MantaError):
    """The cluster does not answer. Says nothing about the jobs on it."""

    code = "cluster_unavailable"
    status = 503


@dataclass(frozen=True)
class LaunchStatus:
    state: LaunchState
    message: str = ""


@dataclass(frozen=True)
class Capacity:
    """All logical CPUs and GPUs of the cluster, used or not."""

    cpus: float
    gpus: float


class Launcher(Protocol):
    """Every method may raise ``LauncherUnavailable``; ``submit`` and ``stop`` are safe to repeat."""

    def submit(self, submission_id: str, entrypoint: str, env: Mapping[str, str]) -> None:
        """Start ``entrypoint`` (a shell command). A submission of that id that exists already is left as it is."""

    def status(self, submission_id: str) -> LaunchStatus: ...

    def stop(self, submission_id: str) -> None:
        """Ask the submission to end: SIGTERM, later SIGKILL. Returns at once; one that ended or never was is no error."""

    def logs(self, submission_id: str) -> str:
        """What the entry point printed; empty when nothing is known of it."""

    def capacity(self) -> Capacity: ...

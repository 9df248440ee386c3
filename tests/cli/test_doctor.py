"""The doctor, on machines that do not exist."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from api.cli.doctor import GIB, Check, Level, ServiceFound, as_document, examine, page, passed
from api.cli.machine import readiness_words


class Healthy:
    """A machine with everything; a test spoils one thing."""

    home = Path("/home/ada/.local/share/manta")
    system = "linux"
    versions: ClassVar[dict[str, str]] = {"ray": "2.60.0", "flash-attn": "2.8.0"}
    devices: tuple[str, ...] = ("NVIDIA H100",)
    cuda_build: str | None = "13.0"
    driver: str | None = "600.1"
    import_error: str | None = None
    python_version = (3, 12, 1)
    free: ClassVar[dict[str, int | None]] = {}
    may_write = True
    core_count = 8
    memory_free = 16 * GIB
    loopback = True
    postgres_binary: str | None = "/usr/lib/postgresql/17/bin/postgres"
    service_state = ServiceFound("http://127.0.0.1:8700", True, 0.2)
    cluster_state: tuple[str, bool | None] = ("http://127.0.0.1:8265", True)

    def python(self) -> tuple[int, int, int]:
        return self.python_version

    def distribution(self, name: str) -> str | None:
        return self.versions.get(name)

    def torch(self) -> dict[str, Any] | str:
        return self.import_error or {"version": "2.13.0", "cuda_build": self.cuda_build, "devices": list(self.devices)}

    def nvidia_driver(self) -> str | None:
        return self.driver

    def free_bytes(self, path: Path) -> int | None:
        return self.free.get(str(path), 100 * GIB)

    def writable(self, path: Path) -> bool:
        return self.may_write

    def cores(self) -> int:
        return self.core_count

    def memory(self) -> tuple[int, int]:
        return 32 * GIB, self.memory_free

    def can_listen(self) -> bool:
        return self.loopback

    def postgres(self) -> str | None:
        return self.postgres_binary

    def service(self) -> ServiceFound:
        return self.service_state

    def cluster(self) -> tuple[str, bool | None]:
        return self.cluster_state


def spoiled(**changes: Any) -> Healthy:
    machine = Healthy()
    for name, value in changes.items():
        setattr(machine, name, value)
    return machine


def found(machine: Healthy, name: str) -> Check:
    return next(check for check in examine(machine) if check.name == name)


def test_a_healthy_machine_passes_and_needs_no_mending() -> None:
    checks = examine(Healthy())
    assert {check.level for check in checks} == {Level.OK}
    assert not any(check.fix for check in checks)


@pytest.mark.parametrize(
    ("changes", "name", "level", "mend"),
    [
        ({"python_version": (3, 10, 9)}, "Python", Level.FAIL, "Python 3.11"),
        ({"import_error": "ModuleNotFoundError: No module named 'torch'"}, "torch", Level.FAIL, "make install"),
        ({"devices": (), "cuda_build": None}, "CUDA", Level.WARN, "CUDA build"),
        ({"devices": ()}, "CUDA", Level.WARN, "driver is older"),
        ({"devices": (), "driver": None, "cuda_build": None}, "CUDA", Level.NOTE, ""),
        ({"versions": {}}, "Ray", Level.FAIL, "make install"),
        ({"versions": {"ray": "2.59.1"}}, "Ray", Level.FAIL, "2.60"),
        ({"versions": {"ray": "2.60.0"}}, "flash-attn", Level.NOTE, ".venv/bin/pip install -e '.[gpu]'"),
        ({"core_count": 1}, "Cores", Level.WARN, "two cores"),
        ({"memory_free": GIB}, "Memory", Level.WARN, "3 GiB"),
        ({"may_write": False}, "Home", Level.FAIL, "MANTA_HOME"),
        ({"free": {str(Healthy.home): 1}}, "Home", Level.WARN, "MANTA_HOME"),
        ({"free": {"/dev/shm": 64 * 2**20}}, "Shared memory", Level.WARN, "--shm-size"),
        ({"free": {"/dev/shm": None}}, "Shared memory", Level.WARN, "--shm-size"),
        ({"system": "darwin", "free": {"/dev/shm": None}}, "Shared memory", Level.OK, ""),
        ({"loopback": False}, "Ports", Level.FAIL, "firewall"),
        ({"postgres_binary": None}, "PostgreSQL", Level.NOTE, "apt install postgresql"),
        ({"service_state": ServiceFound("", None)}, "Service", Level.NOTE, "manta up"),
        ({"service_state": ServiceFound("http://x", False)}, "Service", Level.WARN, "manta down"),
        ({"service_state": ServiceFound("http://x", True, -90.0)}, "Clock", Level.WARN, "NTP"),
        ({"cluster_state": ("", None)}, "Cluster", Level.NOTE, "manta up"),
        ({"cluster_state": ("http://x", False)}, "Cluster", Level.WARN, "manta down"),
    ],
)
def test_each_lack_is_named_with_how_to_mend_it(changes: dict[str, Any], name: str, level: Level, mend: str) -> None:
    check = found(spoiled(**changes), name)
    assert check.level is level
    assert mend in check.fix


def hang(command: str, seconds: float) -> Callable[[], Any]:
    def ask() -> Any:
        raise subprocess.TimeoutExpired(command, seconds)

    return ask


def test_a_probe_that_hangs_is_a_warning_and_the_other_checks_go_on() -> None:
    slow = spoiled(torch=hang("python", 120.0), nvidia_driver=hang("nvidia-smi", 30.0))
    assert (found(slow, "torch").level, found(slow, "Ray").level) == (Level.WARN, Level.OK)
    stuck = spoiled(nvidia_driver=hang("nvidia-smi", 30.0))
    assert (found(stuck, "torch").level, found(stuck, "CUDA").level) == (Level.OK, Level.WARN)
    assert "nvidia-smi took longer than 30" in found(stuck, "CUDA").found


def test_a_service_that_is_not_ready_is_quoted() -> None:
    body = {"ready": False, "checks": {"store": "ok", "cluster": "the local Ray cluster is starting"}}
    words = readiness_words(httpx.Response(503, json=body))
    assert words == "cluster: the local Ray cluster is starting"
    assert words in found(spoiled(service_state=ServiceFound("http://x", False, None, words)), "Service").found
    assert "404" in readiness_words(httpx.Response(404, text="nginx"))


@pytest.mark.parametrize(
    ("level", "ends_well"), [(Level.OK, True), (Level.NOTE, True), (Level.WARN, True), (Level.FAIL, False)]
)
def test_only_what_must_be_mended_fails_the_examination(level: Level, ends_well: bool) -> None:
    checks = [Check("x", level, "y", "do z")]
    assert passed(checks) is ends_well
    assert as_document(checks) == {
        "ok": ends_well,
        "checks": [{"name": "x", "level": level.value, "found": "y", "fix": "do z"}],
    }


def test_the_page_puts_the_remedy_below_the_lack(text: Callable[..., str]) -> None:
    lines = text(page([Check("Ray", Level.FAIL, "not installed", "run `make install`")])).splitlines()
    assert lines[0].split() == ["✗", "Ray", "not", "installed"]
    assert lines[1].strip() == "→ run `make install`"
    assert "cannot run here" in lines[-1]

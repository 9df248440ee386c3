"""`manta doctor`: what this machine has, what it lacks for Manta, and how to get it.

``examine`` is a pure function of a ``Machine``; ``ThisMachine`` looks at the real one.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any, NamedTuple, Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from api.cli.text import duration, size

GIB = 2**30


class Level(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Optional and absent; everything works without."""
    WARN = "warn"
    """Works, but badly."""
    FAIL = "fail"
    """Does not work until it is mended."""


@dataclass(frozen=True)
class Check:
    name: str
    level: Level
    found: str
    fix: str = ""


class ServiceFound(NamedTuple):
    where: str
    """Its url, or where it was looked for."""
    ready: bool | None
    """None: it was never started."""
    clock_offset: float | None = None
    """Seconds."""
    words: str = ""
    """What it says is missing, where it answers at all."""


class Machine(Protocol):
    """Everything that the checks look at. ``torch`` and ``nvidia_driver`` raise ``subprocess.TimeoutExpired``."""

    home: Path
    system: str
    """``linux``, ``darwin`` ..."""

    def python(self) -> tuple[int, int, int]: ...
    def distribution(self, name: str) -> str | None: ...
    def torch(self) -> dict[str, Any] | str:
        """``{version, cuda_build, devices}``, or the last line of why it does not import."""

    def nvidia_driver(self) -> str | None: ...
    def free_bytes(self, path: Path) -> int | None: ...
    def writable(self, path: Path) -> bool: ...
    def cores(self) -> int: ...
    def memory(self) -> tuple[int, int]:
        """Bytes (total, available)."""

    def can_listen(self) -> bool: ...
    def postgres(self) -> str | None: ...
    def service(self) -> "ServiceFound": ...

    def cluster(self) -> tuple[str, bool | None]:
        """(address or where it was looked for, whether it answers); None: it was never started."""


def examine(machine: Machine) -> list[Check]:
    """Every check, in the order in which a newcomer would mend them."""
    checks = [_python(machine), *_torch(machine), _ray(machine), _cores(machine), _memory(machine)]
    checks += [_disk(machine), _shared_memory(machine), _ports(machine)]
    checks += [_postgres(machine), _flash_attention(machine), *_service(machine), _cluster(machine)]
    return checks


def _python(machine: Machine) -> Check:
    version = machine.python()
    text = ".".join(map(str, version))
    if version < (3, 11, 0):
        return Check("Python", Level.FAIL, text, "install Python 3.11 or newer, then `make PYTHON=python3.11 install`")
    return Check("Python", Level.OK, text)


def _torch(machine: Machine) -> list[Check]:
    try:
        found = machine.torch()
    except TimeoutExpired as slow:
        fix = "the disk is slow or a driver hangs; try `.venv/bin/python -c 'import torch'`"
        return [Check("torch", Level.WARN, f"its import took longer than {duration(slow.timeout)}", fix)]
    if isinstance(found, str):
        return [Check("torch", Level.FAIL, found, "run `make install`; it installs the pinned torch")]
    build = f"CUDA {found['cuda_build']}" if found["cuda_build"] else "CPU"
    checks = [Check("torch", Level.OK, f"{found['version']} ({build} build)")]
    try:
        driver = machine.nvidia_driver()
    except TimeoutExpired as slow:
        fix = "the NVIDIA driver hangs; look at `dmesg`, restart the machine"
        return [*checks, Check("CUDA", Level.WARN, f"nvidia-smi took longer than {duration(slow.timeout)}", fix)]
    if found["devices"]:
        checks.append(Check("CUDA", Level.OK, ", ".join(found["devices"])))
    elif driver and not found["cuda_build"]:
        fix = "install the CUDA build: `.venv/bin/pip install --force-reinstall torch==2.13.0` from PyPI's own index"
        checks.append(Check("CUDA", Level.WARN, f"driver {driver}, but torch is a CPU build", fix))
    elif driver:
        fix = "the driver is older than this torch's CUDA, or CUDA_VISIBLE_DEVICES hides the devices"
        checks.append(Check("CUDA", Level.WARN, f"driver {driver}, but torch sees no device", fix))
    else:
        checks.append(Check("CUDA", Level.NOTE, "no device; training runs on CPU workers"))
    return checks


def _ray(machine: Machine) -> Check:
    version = machine.distribution("ray")
    if version is None:
        return Check("Ray", Level.FAIL, "not installed", "run `make install`")
    if not version.startswith("2.60."):
        return Check(
            "Ray", Level.FAIL, version, "Manta is tested with Ray 2.60: `pip install 'ray[data,default,train,tune]==2.60.0'`"
        )
    return Check("Ray", Level.OK, version)


def _cores(machine: Machine) -> Check:
    cores = machine.cores()
    if cores < 2:
        return Check("Cores", Level.WARN, str(cores), "two cores or more train two CPU workers side by side")
    return Check("Cores", Level.OK, str(cores))


def _memory(machine: Machine) -> Check:
    total, free = machine.memory()
    text = f"{size(free)} free of {size(total)}"
    if free < 2 * GIB:
        return Check("Memory", Level.WARN, text, "the demo takes about 3 GiB; close something or use a larger machine")
    return Check("Memory", Level.OK, text)


def _disk(machine: Machine) -> Check:
    home = machine.home
    free = machine.free_bytes(home)
    if not machine.writable(home):
        return Check("Home", Level.FAIL, f"{home} cannot be written", "set MANTA_HOME to a directory that you own")
    if free is None or free < GIB:
        found = "unknown" if free is None else f"{size(free)} free"
        return Check("Home", Level.WARN, f"{home}, {found}", "free some space, or set MANTA_HOME to a larger disk")
    return Check("Home", Level.OK, f"{home}, {size(free)} free")


def _shared_memory(machine: Machine) -> Check:
    if machine.system != "linux":
        return Check("Shared memory", Level.OK, "not used on this system")
    free = machine.free_bytes(Path("/dev/shm"))
    if free is None or free < GIB // 2:
        found = "no /dev/shm" if free is None else f"/dev/shm has {size(free)} free"
        return Check("Shared memory", Level.WARN, found, "Ray falls back to slow files; in a container: `--shm-size=4g`")
    return Check("Shared memory", Level.OK, f"/dev/shm, {size(free)} free")


def _ports(machine: Machine) -> Check:
    if machine.can_listen():
        return Check("Ports", Level.OK, "loopback gives free ports; Manta picks its own")
    return Check(
        "Ports", Level.FAIL, "cannot listen on 127.0.0.1", "a sandbox or firewall forbids loopback sockets; allow them"
    )


def _postgres(machine: Machine) -> Check:
    found = machine.postgres()
    if found:
        return Check("PostgreSQL", Level.OK, found)
    return Check(
        "PostgreSQL",
        Level.NOTE,
        "no binaries; SQLite is used, PostgreSQL's tests skip",
        "for the tests: `apt install postgresql`",
    )


def _flash_attention(machine: Machine) -> Check:
    version = machine.distribution("flash-attn")
    if version:
        return Check("flash-attn", Level.OK, version)
    return Check(
        "flash-attn",
        Level.NOTE,
        "not installed; torch's own attention kernels are used",
        "with CUDA: `.venv/bin/pip install -e '.[gpu]'` in Manta's directory",
    )


def _service(machine: Machine) -> list[Check]:
    where, ready, offset, words = machine.service()
    if ready is None:
        return [Check("Service", Level.NOTE, "not running", "`manta up` starts it")]
    if not ready:
        found = f"{where} is not ready: {words}" if words else f"{where} does not answer"
        return [Check("Service", Level.WARN, found, "`manta down`, then `manta up`")]
    checks = [Check("Service", Level.OK, where)]
    if offset is not None and abs(offset) > 5:
        fix = "set the clocks right (NTP): leases and times of events depend on them"
        checks.append(Check("Clock", Level.WARN, f"{duration(abs(offset))} away from the service's", fix))
    elif offset is not None:
        checks.append(Check("Clock", Level.OK, "agrees with the service's"))
    return checks


def _cluster(machine: Machine) -> Check:
    where, answers = machine.cluster()
    if answers is None:
        return Check("Cluster", Level.NOTE, "not running", "`manta up` starts a local one, or set MANTA_RAY_ADDRESS")
    if not answers:
        return Check("Cluster", Level.WARN, f"{where} does not answer", "`manta down`, then `manta up`")
    return Check("Cluster", Level.OK, where)


def passed(checks: Sequence[Check]) -> bool:
    return all(check.level is not Level.FAIL for check in checks)


def as_document(checks: Sequence[Check]) -> dict[str, Any]:
    """What ``-o json`` prints."""
    return {"ok": passed(checks), "checks": [asdict(check) for check in checks]}


def page(checks: Sequence[Check]) -> RenderableType:
    """One line a check, and below it how to mend it."""
    marks = {Level.OK: "[green]✓[/]", Level.NOTE: "[dim]·[/]", Level.WARN: "[yellow]![/]", Level.FAIL: "[red]✗[/]"}
    grid = Table.grid(padding=(0, 2))
    for check in checks:
        grid.add_row(marks[check.level], Text(check.name, "bold"), Text(check.found))
        if check.fix:
            grid.add_row("", "", Text(f"→ {check.fix}", "dim" if check.level is Level.NOTE else "yellow"))
    end = (
        Text("Manta can run here.", "green")
        if passed(checks)
        else Text("Manta cannot run here yet: mend what is marked ✗.", "red")
    )
    return Group(grid, Text(), end)

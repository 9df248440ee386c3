"""The machine that `manta doctor` examines: this one."""

import json
import os
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from pydantic import SecretStr

from api.cli import local
from api.cli.doctor import ServiceFound
from api.settings import Settings

if TYPE_CHECKING:
    import httpx

TORCH_PROBE = """
import json, torch
cuda = torch.cuda.is_available()
devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({"version": torch.__version__, "cuda_build": torch.version.cuda, "devices": devices}))
"""


class ThisMachine:
    """Looks, and changes nothing. ``url`` is the service that the user named, if one was."""

    def __init__(self, url: str | None = None) -> None:
        self._settings = Settings.read()
        self._url = url
        self.home = self._settings.home
        self.system = sys.platform

    def python(self) -> tuple[int, int, int]:
        return sys.version_info[:3]

    def distribution(self, name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    def torch(self) -> dict[str, Any] | str:
        # In a process of its own: a broken CUDA installation must not take the doctor with it.
        probe = subprocess.run([sys.executable, "-c", TORCH_PROBE], capture_output=True, text=True, timeout=120, check=False)
        if probe.returncode:
            return (probe.stderr.strip().splitlines() or [f"torch's import ended with status {probe.returncode}"])[-1]
        found: dict[str, Any] = json.loads(probe.stdout)
        return found

    def nvidia_driver(self) -> str | None:
        command = shutil.which("nvidia-smi")
        if command is None:
            return None
        query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
        return answer.stdout.strip().splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else None

    def free_bytes(self, path: Path) -> int | None:
        existing = _existing(path)
        return shutil.disk_usage(existing).free if path == self.home or path.exists() else None

    def writable(self, path: Path) -> bool:
        return os.access(_existing(path), os.W_OK | os.X_OK)

    def cores(self) -> int:
        return len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1

    def memory(self) -> tuple[int, int]:
        found = psutil.virtual_memory()
        return found.total, found.available

    def can_listen(self) -> bool:
        try:
            with socket.create_server(("127.0.0.1", 0)):
                return True
        except OSError:
            return False

    def postgres(self) -> str | None:
        packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        return str(packaged[-1]) if packaged else shutil.which("postgres")

    def service(self) -> ServiceFound:
        import httpx

        service = local.recorded(self._settings)
        url = self._url or (service.url if service else None)
        if url is None:
            return ServiceFound(str(self._settings.service_file), None)
        try:
            answer = httpx.get(f"{url.rstrip('/')}/readyz", headers=_bearer(self._settings.token), timeout=5.0, trust_env=False)
        except httpx.HTTPError:
            return ServiceFound(url, False)
        date = answer.headers.get("date")
        # The header counts whole seconds.
        offset = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds() - 0.5 if date else None
        return ServiceFound(url, answer.is_success, offset, "" if answer.is_success else readiness_words(answer))

    def cluster(self) -> tuple[str, bool | None]:
        from api.cluster import LocalCluster

        address = self._settings.ray_address
        if address is not None:
            return address, _answers(address, _bearer(self._settings.ray_token))
        cluster = LocalCluster(self._settings)
        record = cluster.record()
        if record is None:
            return str(self.home / "cluster.json"), None
        return record.dashboard_url, cluster.ready()


def _existing(path: Path) -> Path:
    """``path``, or the nearest directory above it that exists."""
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())


def _bearer(token: SecretStr | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}


def readiness_words(answer: "httpx.Response") -> str:
    """What ``/readyz`` says is wrong, by part; of an answer that is not Manta's, its status."""
    try:
        checks: dict[str, str] = answer.json()["checks"]
        return "; ".join(f"{part}: {state}" for part, state in checks.items() if state != "ok")
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"it answers {answer.status_code}, and not as Manta does"


def _answers(address: str, headers: dict[str, str]) -> bool:
    import httpx

    try:
        return httpx.get(f"{address.rstrip('/')}/api/version", headers=headers, timeout=5.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False

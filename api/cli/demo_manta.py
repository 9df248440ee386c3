"""The Manta that the demo starts: service and cluster of a home of its own, found again by record and by a mark."""

import os
import secrets
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from api.cli import local, specfile
from api.cli.connect import ClientSource
from api.cli.demo import clear
from api.cli.feed import JobSource
from api.client import Client
from api.settings import Settings

if TYPE_CHECKING:
    from service.views import JobView

MARK = "DEMO_OF_MANTA"
"""Environment variable that every process of one demo inherits; whatever still carries it at the end is ended. No setting:
it does not begin with ``MANTA_``, so the cluster does not drop it."""


class DemoManta:
    """One service on loopback with a local cluster. Settings of the user's own Manta do not reach it."""

    def __init__(self, home: Path) -> None:
        # Values given here win over the environment.
        self._settings = Settings.read(
            home=home, host="127.0.0.1", port=0, public_url=None, token=None, database_url=None, ray_address=None
        )
        self._run = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None

    def start(self, held: Callable[[], AbstractContextManager[None]]) -> JobSource:
        """End what an earlier demo may have left, start the service and wait until it is ready."""
        local.stop(self._settings, keep_cluster=False)
        clear(self._settings.home)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MANTA_")}
        with held():
            self._process = local.launch(self._settings, {**environment, MARK: self._run})
        service = local.wait_ready(self._process, self._settings)
        self._client = Client(service.url)
        return ClientSource(self._client)

    def submit(self, spec: Path) -> "JobView":
        assert self._client is not None, "start comes first"
        return self._client.submit(specfile.read(spec))

    def stop(self) -> None:
        """Service first, so that nothing starts anew; then the cluster; then whatever is left and carries this demo's mark."""
        if self._client is not None:
            self._client.close()
        try:
            if self._process is not None:
                local.stop_process(self._process.pid)
            local.stop(self._settings, keep_cluster=False)
        finally:
            local.sweep(MARK, self._run)

"""A whole service on a free port, with a launcher that only remembers."""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.client import Client
from api.services import Services
from api.settings import Settings
from service.launcher import Capacity, LauncherUnavailable, LaunchStatus
from service.views import JobView
from workers.attempt import Order, Report, ReportBatch


@dataclass
class FakeLauncher:
    """A cluster of ``cpus`` CPUs on which every submission runs until the test says otherwise. None: it does not answer."""

    cpus: float | None = None
    states: dict[str, LaunchStatus] = field(default_factory=dict)
    submitted: threading.Event = field(default_factory=threading.Event)

    def submit(self, submission_id: str, entrypoint: str, env: Mapping[str, str]) -> None:
        self._answer()
        self.states.setdefault(submission_id, LaunchStatus("running"))
        self.submitted.set()

    def status(self, submission_id: str) -> LaunchStatus:
        self._answer()
        return self.states.get(submission_id, LaunchStatus("unknown"))

    def stop(self, submission_id: str) -> None:
        self._answer()
        if submission_id in self.states:
            self.states[submission_id] = LaunchStatus("stopped")

    def logs(self, submission_id: str) -> str:
        return ""

    def capacity(self) -> Capacity:
        return Capacity(self._answer(), 0.0)

    def _answer(self) -> float:
        if self.cpus is None:
            raise LauncherUnavailable("no cluster in this test")
        return self.cpus


class Manta:
    """The service under test; ``http`` asks it bare, ``client`` as users do."""

    def __init__(self, settings: Settings, launcher: FakeLauncher) -> None:
        self.settings = settings
        self.launcher = launcher
        self._socket = socket.create_server((settings.host, 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.app: FastAPI = create_app(settings, service_url=self.url, launcher=launcher)
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_config=None, timeout_graceful_shutdown=5))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        token = settings.token.get_secret_value() if settings.token else None
        self.client = Client(self.url, token)
        self.http = httpx.Client(base_url=f"{self.url}/api/v1", timeout=30.0)
        self.client.list()  # the first answer comes once it has started

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    def job(self, **spec: Any) -> JobView:
        return self.client.submit({"name": "tiny", **spec})

    def started_job(self) -> tuple[JobView, Order]:
        """A job whose first attempt the supervisor has submitted, and the order that its driver would read."""
        job = self.job()
        assert self.launcher.submitted.wait(20)
        order = self.settings.jobs_dir / job.id / "attempts" / "1" / "order.json"
        return job, Order.model_validate_json(order.read_bytes())

    def report(self, order: Order, *reports: Report, token: str | None = None) -> httpx.Response:
        return self.http.post(
            f"/jobs/{order.job_id}/attempts/{order.attempt}/reports",
            content=ReportBatch(reports=list(reports)).model_dump_json(),
            headers={"Authorization": f"Bearer {token or order.token}", "Content-Type": "application/json"},
        )

    def stop(self) -> None:
        self.client.close()
        self.http.close()
        if hasattr(self.app.state, "services"):
            self.services.changes.close()
        self._server.should_exit = True
        self._thread.join(20)
        self._socket.close()


Start = Callable[..., Manta]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(cpus=8, **settings)``: a service; without ``cpus`` its cluster does not answer and jobs stay queued."""
    running: list[Manta] = []

    def _start(cpus: float | None = None, **settings: Any) -> Manta:
        manta = Manta(Settings(**{"home": tmp_path / "home", **settings}), FakeLauncher(cpus))
        running.append(manta)
        return manta

    yield _start
    for manta in running:
        manta.stop()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manta]:
    """One service for all tests that do not mind each other's jobs; its cluster does not answer."""
    manta = Manta(Settings(home=tmp_path_factory.mktemp("shared") / "home"), FakeLauncher())
    yield manta
    manta.stop()


@pytest.fixture
def manta(start: Start) -> Manta:
    return start()

"""The commands against a whole service over HTTP, on a cluster that only remembers what was submitted."""

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner, Result

from api.app import create_app
from api.cli.main import app
from api.settings import Settings
from service.launcher import Capacity, LaunchState, LaunchStatus
from workers.attempt import Order, Report, ReportBatch, ReportKind


class Cluster:
    """Eight CPUs; a submission runs until the test ends it, or the service stops it."""

    def __init__(self) -> None:
        self.states: dict[str, LaunchState] = {}
        self.submitted = threading.Event()

    def submit(self, submission_id: str, entrypoint: str, env: Mapping[str, str]) -> None:
        self.states.setdefault(submission_id, "running")
        self.submitted.set()

    def status(self, submission_id: str) -> LaunchStatus:
        return LaunchStatus(self.states.get(submission_id, "unknown"))

    def stop(self, submission_id: str) -> None:
        self.states[submission_id] = "stopped"

    def logs(self, submission_id: str) -> str:
        return ""

    def capacity(self) -> Capacity:
        return Capacity(8.0, 0.0)


class Service:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.cluster = Cluster()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._app = create_app(Settings(home=home), service_url=self.url, launcher=self.cluster)
        self._server = uvicorn.Server(uvicorn.Config(self._app, log_config=None, timeout_graceful_shutdown=5))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        self._sequence = 0

    def manta(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["--url", self.url, *arguments])

    def json(self, *arguments: str) -> Any:
        ended = self.manta(*arguments, "-o", "json")
        assert ended.exit_code == 0, ended.stderr
        return json.loads(ended.stdout)

    def started(self, spec: Path) -> Order:
        """Submit, and wait for the first attempt's order."""
        job = self.json("submit", str(spec))
        assert self.cluster.submitted.wait(20)
        return Order.model_validate_json((self.home / "jobs" / job["id"] / "attempts" / "1" / "order.json").read_bytes())

    def report(self, order: Order, kind: ReportKind, *, generation: int = 0, by: int = 0, **data: Any) -> None:
        self._sequence += 1
        report = Report(
            generation=generation, rank=by, sequence=self._sequence, kind=kind, time=time.time(), data=data
        )  # fmt: skip
        url = f"{self.url}/api/v1/jobs/{order.job_id}/attempts/{order.attempt}/reports"
        body = ReportBatch(reports=[report]).model_dump_json()
        answer = httpx.post(
            url, content=body, headers={"Authorization": f"Bearer {order.token}", "Content-Type": "application/json"}
        )
        assert answer.is_success, answer.text

    def end(self, order: Order, outcome: str) -> None:
        self.report(order, "ended", by=-1, outcome=outcome)
        self.cluster.states[f"manta-{order.job_id}-{order.attempt}"] = "succeeded"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._socket.close()


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    for name in ("MANTA_TOKEN", "MANTA_URL", "MANTA_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    running = Service(tmp_path / "home")
    yield running
    running.stop()


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text("name: tiny\ntraining: {steps: 40}\n")
    return path


def test_a_job_from_submit_to_delete(service: Service, spec: Path) -> None:
    order = service.started(spec)
    (row,) = service.json("list", "--name", "tiny")["items"]
    assert (row["id"], row["attempt"]) == (order.job_id, 1)

    assert service.json("cancel", "tiny")["desired"] == "cancelled"
    assert service.manta("watch", "tiny").exit_code == 3
    assert service.manta("resume", "tiny").exit_code == 1
    assert [item["state"] for item in service.json("list", "--state", "cancelled", "--state", "failed")["items"]] == [
        "cancelled"
    ]

    assert service.json("delete", order.job_id[:6]) == {"id": order.job_id, "deleted": True}
    assert service.manta("show", "tiny").exit_code == 1


def test_the_job_page_tells_of_a_death_and_what_it_cost(service: Service, spec: Path) -> None:
    order = service.started(spec)
    service.report(order, "phase", phase="documents", done=10, total=10, unit="documents", reused=True)
    service.report(order, "phase", phase="training", done=30, total=40, unit="steps")
    service.report(order, "worker", rank=1, pid=4242, node="n1", host="box", state="started")
    died = {"rank": 1, "pid": 4242, "host": "box", "node": "n1", "step": 30}
    service.report(order, "event", type="worker_died", message="rank 1 (pid 4242 on box) died after step 30", **died)
    resumed = {"step": 21, "cost_seconds": 9.125, "lost_steps": 10}
    service.report(order, "event", generation=1, type="training_resumed", message="step 21 was made", **resumed)
    service.report(order, "checkpoint", step=20, path="/c/step-00000020", bytes=2048, state="committed")

    page = service.manta("show", "tiny").stdout
    assert "rank 1, pid 4242 on box died after step 30; training again at step 21 after 9.1 s, 10 steps done again" in page
    assert "/c/step-00000020" in page
    assert "reused" in page
    parts = service.json("show", "tiny")
    assert set(parts) == {"job", "attempts", "workers", "events", "checkpoints"}


def test_a_watch_ends_with_the_job_and_its_figures(service: Service, spec: Path) -> None:
    order = service.started(spec)
    service.report(order, "phase", phase="training", done=40, total=40, unit="steps")
    service.report(order, "metrics", step=40, values={"loss": 5.25, "tokens_per_second": 1000.0})
    service.end(order, "succeeded")
    ended = service.manta("watch", "tiny")
    assert ended.exit_code == 0, ended.stderr
    assert "Training: 40/40 steps, loss 5.2500, 1,000 tokens/s" in ended.stdout


def test_a_failed_attempt_is_status_1_and_shows_its_last_lines(service: Service, spec: Path) -> None:
    order = service.started(spec)
    failure = {"code": "worker_failed", "detail": "ZeroDivisionError: division by zero", "node": "n1", "step": 3}
    service.report(order, "failure", by=1, **failure, log_tail=["in step 3", "boom"])
    service.end(order, "failed")
    ended = service.manta("watch", "tiny")
    assert ended.exit_code == 1
    assert "ZeroDivisionError: division by zero" in ended.stdout
    assert "| boom" in ended.stdout


def test_one_key_makes_one_job_and_refuses_another_spec(service: Service, spec: Path) -> None:
    first = service.json("submit", str(spec), "--idempotency-key", "k")
    assert service.json("submit", str(spec), "--idempotency-key", "k")["id"] == first["id"]
    other = service.manta("submit", str(spec), "--idempotency-key", "k", "--name", "other")
    assert other.exit_code == 1
    assert "idempotency_conflict" in other.stderr


def test_logs_are_read_from_the_attempt_s_files(service: Service, spec: Path) -> None:
    order = service.started(spec)
    logs = order.job_dir / "logs" / "attempt-1"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "driver.log").write_text("2026-03-01T12:00:00.000 data is ready\n")
    (logs / "rank-0.log").write_text("2026-03-01T12:00:01.000 step 1\n")
    lines = service.manta("logs", "tiny").stdout.splitlines()
    assert lines == ["driver | 2026-03-01T12:00:00.000 data is ready", "rank 0 | 2026-03-01T12:00:01.000 step 1"]
    assert service.manta("logs", "tiny", "--rank", "0").stdout.splitlines() == ["2026-03-01T12:00:01.000 step 1"]


def test_nothing_at_the_address_is_status_4() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ended = CliRunner().invoke(app, ["--url", f"http://127.0.0.1:{port}", "list"])
    assert ended.exit_code == 4
    assert "does not answer" in ended.stderr

"""The server's process: on record while it runs, alone in its home, quick to end, back at its old port."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from api.client import Client, ServiceUnavailable
from api.server import listen, worker_url
from api.settings import Settings

Spawn = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def spawn(home: Path) -> Iterator[Spawn]:
    """A service of ``home`` as a process of its own; its cluster is elsewhere, and away."""
    started: list[subprocess.Popen[str]] = []
    environment = os.environ | {"MANTA_HOME": str(home), "MANTA_RAY_ADDRESS": "http://127.0.0.1:1"}

    def _spawn() -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "api.server"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield _spawn
    for process in started:
        process.kill()
        process.communicate()


def answering(home: Path, process: "subprocess.Popen[str]") -> str:
    """The url on record, once it answers for this process."""
    while True:
        assert process.poll() is None, process.communicate()
        record = home / "service.json"
        if record.exists():
            service = json.loads(record.read_text())
            if service["pid"] == process.pid:
                assert httpx.get(f"{service['url']}/healthz").status_code == 200
                return str(service["url"])
        time.sleep(0.02)


def test_on_record_alone_and_gone_at_sigterm(home: Path, spawn: Spawn) -> None:
    settings = Settings(home=home)
    with pytest.raises(ServiceUnavailable, match="manta up"):
        Client.discover(settings)

    first = spawn()
    url = answering(home, first)
    client = Client.discover(settings)
    assert client.base_url == url
    job = client.submit({"name": "x"})

    second = spawn()
    _, complaint = second.communicate(timeout=60)
    assert (second.returncode, "already_running" in complaint) == (2, True)

    # a stream that is open does not hold the end up
    with httpx.stream("GET", f"{url}/api/v1/jobs/{job.id}/stream") as stream:
        next(stream.iter_lines())
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=30) == 0
    assert not (home / "service.json").exists()


def test_killed_and_started_again_it_has_its_port_and_its_jobs(home: Path, spawn: Spawn) -> None:
    first = spawn()
    url = answering(home, first)
    client = Client(url)
    job = client.submit({"name": "x"})
    snapshots = client.stream_job(job.id)
    assert next(snapshots).state == "queued"
    first.kill()
    first.wait()

    second = spawn()
    assert answering(home, second) == url
    client.cancel(job.id)
    *_, last = snapshots  # over the restart
    assert last.state == "cancelled"


def test_a_service_whose_supervisor_ended_ends_too(home: Path) -> None:
    """Whoever keeps the service up can start it again; one that goes on would take jobs and start none."""
    code = "import service.supervisor as s; s.Supervisor.tick = lambda self: 1 / 0; import api.server; api.server.main()"
    environment = os.environ | {"MANTA_HOME": str(home), "MANTA_RAY_ADDRESS": "http://127.0.0.1:1"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr
    assert "the supervisor has ended" in ended.stderr
    assert not (home / "service.json").exists()


def test_bad_settings_end_it_with_one_line(home: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "api.server"]
    environment = os.environ | {"MANTA_HOME": str(home), "MANTA_HOST": "0.0.0.0"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("settings_invalid: MANTA_HOST is 0.0.0.0")
    assert len(ended.stderr.splitlines()) == 1


def test_a_remembered_port_that_is_taken_is_given_up(home: Path) -> None:
    settings = Settings(home=home)
    settings.make_home()
    with listen(settings) as first:
        first.listen()
        with listen(settings) as second:
            assert second.getsockname()[1] != first.getsockname()[1]


def test_workers_elsewhere_are_given_a_name_they_can_reach(home: Path) -> None:
    token = "long-enough-to-be-one"
    assert worker_url(Settings(home=home), 80) == "http://127.0.0.1:80"
    assert worker_url(Settings(home=home, host="::1"), 80) == "http://[::1]:80"
    assert worker_url(Settings(home=home, host="0.0.0.0", token=token), 80) == "http://127.0.0.1:80"
    assert worker_url(Settings(home=home, public_url="https://manta.example/"), 80) == "https://manta.example"
    elsewhere = Settings(home=home, host="0.0.0.0", token=token, ray_address="http://head:8265")
    assert not worker_url(elsewhere, 80).startswith("http://127.")

"""A whole Manta, as its users start it, on the session's Ray cluster; and a job that is small enough to run many times."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest

from api.client import Client
from api.cluster import LocalCluster
from api.settings import Settings
from service.states import FINAL
from service.views import EventView, JobView, MetricView

T = TypeVar("T")
PATIENCE_SECONDS = 120.0


def until(look: Callable[[], T | bool | None], what: str, last_word: Callable[[], str] = str) -> T:
    """The first truthy answer of ``look``; polling is for what happens in other processes."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := look():
            return found  # type: ignore[return-value]
        time.sleep(0.05)
    raise AssertionError(f"gave up waiting for {what} {last_word()}")


@dataclass
class House:
    """One Manta service in a home of its own. ``kill`` is SIGKILL; ``start`` again is a restart."""

    home: Path
    cluster: LocalCluster
    process: subprocess.Popen[bytes] | None = field(default=None)
    last_word: str = ""
    """What the service said of its readiness, for a failed test to show."""

    def start(self) -> None:
        record = self.cluster.record()
        assert record is not None
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MANTA_")} | {
            "MANTA_HOME": str(self.home),
            "MANTA_RAY_ADDRESS": record.dashboard_url,
            "MANTA_RAY_TOKEN": self.cluster.token(),
        }
        self.process = subprocess.Popen([sys.executable, "-m", "api.server"], env=environment)
        until(self.ready, "the service to be ready")

    def ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the service exited"
        try:
            record = json.loads((self.home / "service.json").read_bytes())
            answer = httpx.get(f"{record['url']}/readyz")
            self.last_word = answer.text
            return record["pid"] == self.process.pid and answer.is_success
        except (OSError, ValueError, httpx.TransportError):
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=30)

    def client(self) -> Client:
        return Client.discover(Settings(home=self.home))

    # -- what tests ask ----------------------------------------------------------------------------------------------------

    def ended(self, job_id: str) -> JobView:
        with self.client() as client:
            return until(lambda: (job := client.get(job_id)).state in FINAL and job, f"job {job_id} to end")

    def metrics(self, job_id: str) -> list[MetricView]:
        with self.client() as client:
            found, after = [], None
            while (page := client.metrics(job_id, after=after, limit=500)).items:
                found += page.items
                after = page.items[-1].id
        return found

    def losses(self, job_id: str) -> dict[int, float]:
        """Loss of each step; of a repeated step the newest generation's."""
        return {m.step: m.values["loss"] for m in self.metrics(job_id) if "loss" in m.values}

    def events(self, job_id: str, kind: str | None = None) -> list[EventView]:
        with self.client() as client:
            page = client.events(job_id, limit=500)
        return [event for event in page.items if kind in (None, event.type)]

    def reaches(self, job_id: str, step: int) -> JobView:
        """Wait until optimizer step ``step`` was reported; the job must not be over by then."""

        def look() -> JobView | None:
            with self.client() as client:
                job = client.get(job_id)
            assert job.state not in FINAL, f"the job ended early: {job.state} {job.failure}"
            return job if (job.step or 0) >= step else None

        return until(look, f"step {step}")


@pytest.fixture(scope="session")
def house(local_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("road") / "home", local_cluster)
    house.start()
    yield house
    house.stop()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences with something to learn in them: 400 documents, the same in every session."""
    draw = random.Random(7)
    things, deeds = ["the ship", "a storm", "the harbour", "an old sailor"], ["meets", "leaves", "fears", "remembers"]
    path = tmp_path_factory.mktemp("corpus") / "sea.jsonl"
    with path.open("w") as file:
        for number in range(400):
            lines = [f"{draw.choice(things)} {draw.choice(deeds)} {draw.choice(things)}." for _ in range(25)]
            file.write(json.dumps({"text": f"Chapter {number}. " + " ".join(lines)}) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny(corpus: Path) -> Callable[..., dict[str, Any]]:
    """A job spec of two workers that trains in seconds; keyword arguments replace whole blocks' fields."""

    def make(name: str, **blocks: dict[str, Any]) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "name": name,
            "data_pipeline": {"sources": [{"path": str(corpus), "domain": "sea"}], "sequence_length": 64},
            "tokenizer": {"vocab_size": 320},
            "model": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "moe_intermediate_size": 32,
                "n_routed_experts": 4,
            },
            "parallel_strategy": {"data_parallel": 2},
            "training": {"steps": 200, "global_batch_size": 8, "micro_batch_size": 4, "eval_rows": 8},
            "checkpoint": {"interval": 20},
        }
        for block, fields in blocks.items():
            spec[block] = {**spec.get(block, {}), **fields}
        return spec

    return make


OF_THE_CLUSTER = ("IDLE", "DashboardAgent", "RuntimeEnvAgent", "_StatsActor", "_AutoscalingCoordinatorActor")
"""Ray's own: workers without work, its agents, and Ray Data's two detached actors, which all drivers share."""


def attempt_processes(cluster: LocalCluster) -> dict[int, str]:
    """Pid and command line of drivers and of Ray's actors and tasks on the cluster: what an ended attempt must not leave."""
    found = {}
    for process in cluster.processes():
        try:
            line = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        # Ray renames its worker processes to what they run.
        if "workers.driver" in line or (line.startswith("ray::") and not any(own in line for own in OF_THE_CLUSTER)):
            found[process.pid] = line
    return found

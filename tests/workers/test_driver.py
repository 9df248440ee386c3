"""The driver as a process of its own on a real cluster, with a service that only listens."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from api.cluster import LocalCluster
from workers.attempt import Order, Report, ReportBatch
from workers.spec import TrainSpec

pytestmark = pytest.mark.cluster

T = TypeVar("T")
PATIENCE_SECONDS = 240.0
STEPS_THAT_NEVER_END = 100_000


def until(look: Callable[[], T], what: str) -> T:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, f"gave up waiting for {what}"
        time.sleep(0.05)
    return found


@dataclass
class Ears:
    """A service that stores what it is told."""

    url: str
    desired: str = "running"
    reports: list[Report] = field(default_factory=list)

    def of(self, kind: str) -> list[Report]:
        return [report for report in self.reports if report.kind == kind]

    def pids(self) -> list[int]:
        return [report.data["pid"] for report in self.of("worker") if report.data["state"] == "started" and report.rank >= 0]

    def steps(self) -> list[int]:
        assert not self.of("failure"), self.of("failure")
        return [report.data["step"] for report in self.of("metrics") if "loss" in report.data["values"]]


@pytest.fixture
def ears() -> Iterator[Ears]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            ears.reports.extend(ReportBatch.model_validate_json(body).reports)
            answer = json.dumps({"desired": ears.desired}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ears = Ears(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield ears
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def order(tmp_path: Path, ears: Ears, prepared_dir: Path) -> Order:
    text = prepared_dir / "text.jsonl"
    if not text.exists():
        words = "the quick brown fox jumps over the lazy dog. " * 8
        text.write_text("".join(json.dumps({"text": f"Document {i}: {words}"}) + "\n" for i in range(400)))
    spec = TrainSpec.model_validate(
        {
            "data_pipeline": {"sources": [{"path": str(text)}], "sequence_length": 32, "deduplicate": False},
            "tokenizer": {"vocab_size": 300},
            "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
            | {"moe_intermediate_size": 16, "n_routed_experts": 4},
            "parallel_strategy": {"data_parallel": 2},
            "training": {"steps": STEPS_THAT_NEVER_END, "global_batch_size": 4, "micro_batch_size": 2, "eval_rows": 2},
            "checkpoint": {"interval": 10},
        }
    )
    return Order(
        job_id="j1",
        job_name="test",
        kind="train",
        attempt=1,
        token="t",
        service_url=ears.url,
        spec=spec.model_dump(mode="json"),
        job_dir=tmp_path / "job",
        prepared_dir=prepared_dir,
    )


@pytest.fixture
def driver(local_cluster: LocalCluster, order: Order) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        record = local_cluster.record()
        assert record is not None
        environment = os.environ | {
            "RAY_ADDRESS": f"127.0.0.1:{record.gcs_port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(local_cluster.token_file),
        }
        file = order.job_dir.parent / "order.json"
        file.write_text(order.model_dump_json())
        process = subprocess.Popen([sys.executable, "-m", "workers.driver", str(file)], env=environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@contextmanager
def nothing_left(ears: Ears) -> Iterator[None]:
    """After the block no worker lives and no placement group stands."""
    yield
    until(lambda: not any(psutil.pid_exists(pid) for pid in ears.pids()), "the workers to go")
    from ray.util import placement_group_table

    until(lambda: {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}, "placement groups to go")


def test_a_killed_driver_leaves_no_worker_and_no_placement_group(
    driver: Callable[[], subprocess.Popen[bytes]], ears: Ears, ray_cluster: None
) -> None:
    process = driver()
    until(ears.steps, "the first step")
    assert len(ears.pids()) == 2
    with nothing_left(ears):
        process.kill()


def test_sigterm_ends_the_attempt_in_order(
    driver: Callable[[], subprocess.Popen[bytes]], ears: Ears, ray_cluster: None
) -> None:
    process = driver()
    until(ears.steps, "the first step")
    with nothing_left(ears):
        process.terminate()
        assert process.wait(timeout=PATIENCE_SECONDS) == 0
    assert [report.data for report in ears.of("ended")] == [{"outcome": "cancelled"}]


def test_a_killed_worker_is_reported_with_what_it_cost(
    driver: Callable[[], subprocess.Popen[bytes]], ears: Ears, order: Order, ray_cluster: None
) -> None:
    process = driver()
    until(lambda: [step for step in ears.steps() if step > 10], "a checkpoint")
    until(lambda: ears.of("checkpoint"), "a checkpoint")
    victim = ears.pids()[0]
    with nothing_left(ears):
        os.kill(victim, signal.SIGKILL)
        (resumed,) = until(
            lambda: [r.data for r in ears.of("event") if r.data["type"] == "training_resumed"], "training to resume"
        )
        ears.desired = "cancelled"
        assert process.wait(timeout=PATIENCE_SECONDS) == 0
    (death,) = [report.data for report in ears.of("event") if report.data["type"] == "worker_died"]
    assert death["pid"] == victim
    assert resumed["ranks"] == [death["rank"]]
    assert resumed["step"] > 1
    assert resumed["cost_seconds"] > 0
    assert {report.generation for report in ears.of("metrics")} == {0, 1}


def test_an_exception_in_a_worker_is_told_with_rank_node_and_log(
    driver: Callable[[], subprocess.Popen[bytes]], ears: Ears, order: Order, ray_cluster: None
) -> None:
    order.job_dir.mkdir()
    (order.job_dir / "checkpoints").write_text("in the way")
    process = driver()
    with nothing_left(ears):
        assert process.wait(timeout=PATIENCE_SECONDS) == 1
    (failure,) = [report.data for report in ears.of("failure")]
    assert failure["code"] == "worker_failed"
    assert "FileExistsError" in failure["detail"]
    assert failure["rank"] in (0, 1)
    assert failure["node"]
    assert sum("FileExistsError" in line for line in failure["log_tail"]) == 1, "each line is there once"
    assert [report.data["outcome"] for report in ears.of("ended")] == ["failed"]

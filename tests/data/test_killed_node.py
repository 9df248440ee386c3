"""A machine of the cluster is gone in the midst of a preparation: the others do its work."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from api import ports
from api.cluster import TAG, LocalCluster
from data.executors import SerialExecutor
from data.prepare import prepare
from data.spec import DataSpec
from tests.data.conftest import data_spec, json_lines, texts, write
from tests.data.killed import TOKENIZER, files

PORTS = (
    *("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port"),
    *("metrics-export-port", "node-manager-port", "object-manager-port"),
)
NODE = "MANTA_TEST_NODE"
"""In the environment of the second node's workers."""


@pytest.fixture
def second_node(local_cluster: LocalCluster, ray_cluster: None) -> Iterator[None]:
    """A raylet of its own beside the session's, with its workers and its object store."""
    import ray

    record = local_cluster.record()
    assert record is not None
    with ports.picked(len(PORTS)) as picked:
        chosen = dict(zip(PORTS, picked, strict=True))
    options = {"address": f"127.0.0.1:{record.gcs_port}", "num-cpus": 2, "min-worker-port": 0, "max-worker-port": 0, **chosen}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *(f"--{k}={v}" for k, v in options.items())]
    environment = os.environ | {TAG: record.id, NODE: "second", "PYTHONPATH": str(Path(__file__).parents[2])}
    before = {node["NodeID"] for node in ray.nodes()}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not any(node["Alive"] and node["NodeID"] not in before for node in ray.nodes()):
            with pytest.raises(subprocess.TimeoutExpired):  # it did not start
                process.wait(timeout=0.1)
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            for each in [*parent.children(recursive=True), parent]:
                each.kill()
        process.wait()


class OnTwoNodes:
    """Tasks on Ray. The first on the second node, of whatever kind, kills that node's raylet before it is done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
        from data.ray_executor import RayDataExecutor

        folder, name = self.folder, fn.__name__

        def run(task: Any) -> Any:
            if os.environ.get(NODE) == "second":
                raylet = next(parent for parent in psutil.Process().parents() if parent.name() == "raylet")
                (folder / f"{name}-{raylet.pid}").touch()
                raylet.send_signal(signal.SIGKILL)
                threading.Event().wait()  # a worker goes with its raylet
            return fn(task)

        return RayDataExecutor().map(run, shards)


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    for part in range(8):
        write(tmp_path / "en" / f"{part}.jsonl", json_lines(texts(12, seed=part)))
    return data_spec(str(tmp_path / "en" / "*.jsonl"), deduplicate="minhash", documents=True)


@pytest.mark.cluster
@pytest.mark.usefixtures("second_node")
def test_a_machine_killed_in_a_preparation_changes_no_byte(spec: DataSpec, tmp_path: Path) -> None:
    whole = prepare(spec, TOKENIZER, tmp_path / "whole", SerialExecutor(), lambda progress: None)
    spread = prepare(spec, TOKENIZER, tmp_path / "ray", OnTwoNodes(tmp_path / "killed"), lambda progress: None)
    killed = [int(path.name.rpartition("-")[2]) for path in (tmp_path / "killed").iterdir()]
    assert killed
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in killed)
    assert files(spread.path) == files(whole.path)

"""What Manta costs beside what it is built on: ``make bench NAME=overhead``.

On one running cluster with the shards prepared, in alternating pairs: the shipped command line against the bare TorchTrainer
script of ``tests/bench/peers`` given to Ray's job API (same model, shards, samples, steps). Seconds from submit to the first
optimizer step, and from the last step until Ray says that the job has ended and no process of it lives. Then training
tokens/s by the wall clock, from the first reported step after the warm-up to the last, through Manta against
``workers.local`` under torchrun, with cluster and service up for both.

What the peer does otherwise than Manta: DDP and not FSDP; weight decay on all parameters, in Manta on matrices only; router
bias updates from each rank's last micro-batch, in Manta from the counts of the global batch; the loss is the mean of the
micro-batches' means, in Manta the mean over all tokens. So their losses differ a little, and the work of a step hardly. After
its last step the peer saves a checkpoint and is done; Manta also evaluates and samples, which the small model of the finish
ratio keeps short. ``default_model_finish_seconds`` is Manta's finish with the default model, all of that in it.

The last line is one JSON object.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml

from api.client import Client
from api.cluster import TAG, LocalCluster
from api.launcher import Endpoint, RayLauncher
from api.settings import Settings
from service.states import FINAL
from service.views import JobView, MetricView

PAIRS = 3
THROUGHPUT_PAIRS = 5
WORKERS = 2
SHORT_STEPS = 20
LONG_STEPS = 60
SKIPPED_STEPS = 10
PATIENCE_SECONDS = 300.0
PEER = Path(__file__).parent / "peers" / "bare_torchtrainer.py"


def job(steps: int) -> dict[str, Any]:
    """Short jobs have a small model: starting and stopping is what they measure, and not the evaluation, the samples and the
    checkpoint that Manta ends with and the bare script does without. Long jobs have the default model."""
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return {
        "kind": "train",
        "name": "overhead",
        "parallel_strategy": {"data_parallel": WORKERS},
        "data_pipeline": {"sequence_length": 128},
        "model": small | {"moe_intermediate_size": 64, "n_routed_experts": 4} if steps == SHORT_STEPS else {},
        "training": {"steps": steps, "global_batch_size": 16, "micro_batch_size": 4, "eval_rows": 8},
        "checkpoint": {"interval": 1000},
    }


@dataclass(frozen=True)
class Run:
    """Seconds."""

    first_step: float
    finish: float


@dataclass
class Bench:
    home: Path
    client: Client
    launcher: RayLauncher
    cluster_id: str
    count: int = 0

    def file(self, steps: int) -> Path:
        path = self.home / f"job-{steps}.yaml"
        path.write_text(yaml.safe_dump(job(steps)))
        return path

    def submit(self, steps: int) -> str:
        command = [sys.executable, "-m", "api.cli.main", "submit", str(self.file(steps)), "-o", "json"]
        answer = subprocess.run(command, env=environment(self.home), check=True, capture_output=True, text=True)
        return str(json.loads(answer.stdout)["id"])

    def manta(self, steps: int = SHORT_STEPS) -> Run:
        before, started = set(psutil.pids()), time.time()
        job_id = self.submit(steps)
        self.gone(f"manta-{job_id}-1", before)
        ended = time.time()
        job, metrics = self.result(job_id)
        assert job.state == "succeeded", job.failure
        times = {metric.step: metric.at.timestamp() for metric in metrics if "loss" in metric.values}
        return Run(times[1] - started, ended - times[steps])

    def result(self, job_id: str) -> tuple[JobView, list[MetricView]]:
        while (view := self.client.get(job_id)).state not in FINAL:
            time.sleep(0.05)
        metrics: list[MetricView] = []
        while page := self.client.metrics(job_id, after=metrics[-1].id if metrics else None, limit=500).items:
            metrics += page
        return view, metrics

    def bare(self, prepared: Path, steps: int = SHORT_STEPS) -> Run:
        self.count += 1
        directory = self.home / "bare" / str(self.count)
        directory.mkdir(parents=True)
        spec = {key: value for key, value in job(steps).items() if key not in ("kind", "name")}
        config = {
            "prepared": str(prepared),
            "spec": spec,
            "steps_file": str(directory / "steps"),
            "storage": str(directory),
            "num_workers": WORKERS,
        }
        entrypoint = f"exec {sys.executable} {PEER} {shlex.quote(json.dumps(config))}"
        before, started = set(psutil.pids()), time.time()
        self.launcher.submit(f"bare-{self.count}", entrypoint, {})
        state = self.gone(f"bare-{self.count}", before)
        ended = time.time()
        assert state == "succeeded", self.launcher.logs(f"bare-{self.count}")
        times = {line["step"]: line["time"] for line in map(json.loads, (directory / "steps").read_text().splitlines())}
        return Run(times[1] - started, ended - times[steps])

    def gone(self, submission_id: str, before: set[int]) -> str:
        """Wait until Ray says that the job has ended, and no process of it lives. Returns the state."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (state := self.launcher.status(submission_id).state) in ("unknown", "pending", "running"):
            assert time.monotonic() < deadline, f"{submission_id} does not end"
            time.sleep(0.05)
        while alive := [process for process in psutil.process_iter() if self.is_of_the_attempt(process, before)]:
            assert time.monotonic() < deadline, f"{alive} outlive {submission_id}"
            time.sleep(0.05)
        return state

    def is_of_the_attempt(self, process: psutil.Process, before: set[int]) -> bool:
        """A driver, or a Ray process that holds an actor or a task, born after the submit. Idle spares are the cluster's."""
        if process.pid in before:
            return False
        try:
            command = " ".join(process.cmdline())
            ours = process.environ().get(TAG) == self.cluster_id
        except psutil.Error:
            return False
        works = command.startswith("ray::") and not command.startswith("ray::IDLE")
        return ours and (works or "workers.driver" in command or str(PEER) in command)

    @staticmethod
    def is_driver(process: psutil.Process, job_id: str) -> bool:
        with suppress(psutil.Error):
            command = process.cmdline()
            return "workers.driver" in command and any(job_id in part for part in command)
        return False

    def manta_rate(self) -> tuple[float, float]:
        """Tokens a second, and the seconds from the last step until no process lives."""
        before = set(psutil.pids())
        job_id = self.submit(LONG_STEPS)
        # Whoever asks Ray's job API or the service again and again takes cores that training would have.
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (drivers := [each for each in psutil.process_iter() if self.is_driver(each, job_id)]):
            assert time.monotonic() < deadline, f"job {job_id} has no driver"
            time.sleep(0.5)
        _, alive = psutil.wait_procs(drivers, timeout=PATIENCE_SECONDS)
        assert not alive, f"{alive} do not end"
        self.gone(f"manta-{job_id}-1", before)
        ended = time.time()
        job, metrics = self.result(job_id)
        assert job.state == "succeeded", job.failure
        times = {metric.step: metric.at.timestamp() for metric in metrics if "loss" in metric.values}
        return rate(times), ended - times[LONG_STEPS]

    def local_rate(self) -> float:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORKERS}"]
        with tempfile.TemporaryDirectory() as out:
            (Path(out) / "prepared").symlink_to(self.home / "prepared")
            command += ["-m", "workers.local", str(self.file(LONG_STEPS)), "--out", out]
            subprocess.run(command, check=True, capture_output=True, env=environment(self.home))
            lines = map(json.loads, (Path(out) / "metrics.jsonl").read_text().splitlines())
            return rate({line["step"]: line["time"] for line in lines if "loss" in line["values"]})


def rate(times: dict[int, float]) -> float:
    """Tokens a second between the first step after the warm-up and the last one, by ``times`` (Unix seconds) of steps."""
    training = job(LONG_STEPS)["training"]
    tokens = training["global_batch_size"] * job(LONG_STEPS)["data_pipeline"]["sequence_length"]
    first, last = SKIPPED_STEPS, max(times)
    assert last == LONG_STEPS, f"step {LONG_STEPS} was not reported, but {last}"
    return float(tokens * (last - first) / (times[last] - times[first]))


def environment(home: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MANTA_", "RAY_"))}
    return inherited | {"MANTA_HOME": str(home), "OMP_NUM_THREADS": "1"}


@contextmanager
def manta_up() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="manta-bench-") as directory:
        home = Path(directory)
        settings = Settings(home=home)
        manta = [sys.executable, "-m", "api.cli.main"]
        subprocess.run([*manta, "up"], env=environment(home), check=True, stdout=subprocess.DEVNULL)
        try:
            cluster = LocalCluster(settings)
            record = cluster.record()
            assert record is not None
            launcher = RayLauncher(lambda: Endpoint(record.dashboard_url, cluster.token()))
            with Client.discover(settings) as client:
                yield Bench(home, client, launcher, record.id)
        finally:
            subprocess.run([*manta, "down"], env=environment(home), check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that what was started is stopped
    with manta_up() as bench:
        say("preparing shards, and one run of each that does not count")
        # Ray Data leaves two detached actors in the cluster when it is first used; they belong to no attempt.
        job, _ = bench.result(bench.submit(SHORT_STEPS))
        assert job.state == "succeeded", job.failure
        (prepared,) = (manifest.parent for manifest in (bench.home / "prepared").glob("*/manifest.json"))
        bench.bare(prepared)
        manta, bare = [], []
        for pair in range(PAIRS):
            for which in ("manta", "bare") if pair % 2 == 0 else ("bare", "manta"):
                run = bench.manta() if which == "manta" else bench.bare(prepared)
                (manta if which == "manta" else bare).append(run)
                say(f"pair {pair + 1} {which}: first step {run.first_step:.2f} s, finish {run.finish:.2f} s")
        through, local, whole = [], [], []
        for pair in range(THROUGHPUT_PAIRS):
            for which in ("manta", "local") if pair % 2 == 0 else ("local", "manta"):
                if which == "manta":
                    found, end = bench.manta_rate()
                    through.append(found)
                    whole.append(end)
                else:
                    found = bench.local_rate()
                    local.append(found)
                say(f"pair {pair + 1} {which}: {found:.0f} tokens/s")
    first, bare_first = median(r.first_step for r in manta), median(r.first_step for r in bare)
    finish, bare_finish = median(r.finish for r in manta), median(r.finish for r in bare)
    figures = {
        "bench": "overhead",
        "peer": "bare TorchTrainer through Ray's job API; workers.local under torchrun",
        "first_step_seconds": round(first, 3),
        "peer_first_step_seconds": round(bare_first, 3),
        "first_step_ratio": round(first / bare_first, 3),
        "finish_seconds": round(finish, 3),
        "peer_finish_seconds": round(bare_finish, 3),
        "finish_ratio": round(finish / bare_finish, 3),
        "default_model_finish_seconds": round(median(whole), 3),
        "tokens_per_second": round(median(through), 1),
        "local_tokens_per_second": round(median(local), 1),
        "throughput_ratio": round(median(a / b for a, b in zip(through, local, strict=True)), 3),
        "pairs": PAIRS,
        "throughput_pairs": THROUGHPUT_PAIRS,
        "workers": WORKERS,
        "units": {"seconds": "s", "tokens_per_second": "tokens/s", "ratio": "Manta / peer"},
    }
    print(json.dumps(figures))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""What Manta costs beside what it is built on: ``make bench NAME=overhead``.

On one running cluster with the shards prepared, in alternating pairs: the shipped command line against the bare TorchTrainer
script of ``tests/bench/peers`` given to Ray's job API (same model, shards, samples, steps). Seconds from submit to the first
optimizer step, and from the last step until Ray says that the job has ended and no process of it lives. Then training
tokens/s through Manta against ``workers.local`` under torchrun, with cluster and service up for both: see
``tests/bench/throughput.py``.

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
from contextlib import contextmanager
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
from tests.bench.throughput import WARM_STEPS, Side, block_ratios, local, take_turns, until

PAIRS = 3
WORKERS = 2
SHORT_STEPS = 20
ENDLESS_STEPS = 2000
PATIENCE_SECONDS = 300.0
PEER = Path(__file__).parent / "peers" / "bare_torchtrainer.py"


def job(model: str = "small", steps: int = SHORT_STEPS) -> dict[str, Any]:
    """The ``small`` model is for what measures starting and stopping, and not the evaluation, the samples and the checkpoint
    that Manta ends with and the bare script does without; else it is the ``default`` one."""
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return {
        "kind": "train",
        "name": "overhead",
        "parallel_strategy": {"data_parallel": WORKERS},
        "data_pipeline": {"sequence_length": 128},
        "model": small | {"moe_intermediate_size": 64, "n_routed_experts": 4} if model == "small" else {},
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

    def file(self, model: str, steps: int) -> Path:
        path = self.home / f"job-{model}-{steps}.yaml"
        path.write_text(yaml.safe_dump(job(model, steps)))
        return path

    def submit(self, model: str = "small", steps: int = SHORT_STEPS) -> str:
        command = [sys.executable, "-m", "api.cli.main", "submit", str(self.file(model, steps)), "-o", "json"]
        answer = subprocess.run(command, env=environment(self.home), check=True, capture_output=True, text=True)
        return str(json.loads(answer.stdout)["id"])

    def manta(self, model: str = "small") -> Run:
        before, started = set(psutil.pids()), time.time()
        job_id = self.submit(model)
        self.gone(f"manta-{job_id}-1", before)
        ended = time.time()
        job, metrics = self.result(job_id)
        assert job.state == "succeeded", job.failure
        times = step_times(metrics)
        return Run(times[1] - started, ended - times[SHORT_STEPS])

    def result(self, job_id: str) -> tuple[JobView, list[MetricView]]:
        while (view := self.client.get(job_id)).state not in FINAL:
            time.sleep(0.05)
        return view, self.metrics(job_id)

    def metrics(self, job_id: str) -> list[MetricView]:
        metrics: list[MetricView] = []
        while page := self.client.metrics(job_id, after=metrics[-1].id if metrics else None, limit=500).items:
            metrics += page
        return metrics

    def bare(self, prepared: Path) -> Run:
        self.count += 1
        directory = self.home / "bare" / str(self.count)
        directory.mkdir(parents=True)
        spec = {key: value for key, value in job().items() if key not in ("kind", "name")}
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
        return Run(times[1] - started, ended - times[SHORT_STEPS])

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

    @contextmanager
    def training(self) -> Iterator[Side]:
        """The default model in mid-training, warm and stopped; cancelled at the end."""
        before = set(psutil.pids())
        job_id = self.submit("default", ENDLESS_STEPS)
        until(lambda: max(step_times(self.metrics(job_id)), default=0) >= WARM_STEPS)
        processes = [process for process in psutil.process_iter() if self.is_of_the_attempt(process, before)]
        side = Side("manta", processes, lambda: step_times(self.metrics(job_id)))
        side.send(signal.SIGSTOP)
        try:
            yield side
        finally:
            side.send(signal.SIGCONT)
            self.client.cancel(job_id)
            self.result(job_id)


def step_times(metrics: list[MetricView]) -> dict[int, float]:
    """Unix seconds at which each step was done."""
    return {metric.step: metric.at.timestamp() for metric in metrics if "loss" in metric.values}


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
        job, _ = bench.result(bench.submit())
        assert job.state == "succeeded", job.failure
        (prepared,) = (manifest.parent for manifest in (bench.home / "prepared").glob("*/manifest.json"))
        bench.bare(prepared)
        manta, bare = [], []
        for pair in range(PAIRS):
            for which in ("manta", "bare") if pair % 2 == 0 else ("bare", "manta"):
                run = bench.manta() if which == "manta" else bench.bare(prepared)
                (manta if which == "manta" else bare).append(run)
                say(f"pair {pair + 1} {which}: first step {run.first_step:.2f} s, finish {run.finish:.2f} s")
        whole = [bench.manta("default").finish for _ in range(PAIRS)]
        ours, theirs = throughput(bench, prepared)
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
        "tokens_per_second": round(median(ours), 1),
        "local_tokens_per_second": round(median(theirs), 1),
        "throughput_ratio": round(median(block_ratios(ours, theirs)), 3),
        "throughput_ratios": [round(ratio, 3) for ratio in block_ratios(ours, theirs)],
        "pairs": PAIRS,
        "workers": WORKERS,
        "units": {"seconds": "s", "tokens_per_second": "tokens/s", "ratio": "Manta / peer"},
    }
    print(json.dumps(figures))


def throughput(bench: Bench, prepared: Path) -> tuple[list[float], list[float]]:
    """Tokens/s in each window, through Manta and through ``workers.local``."""
    say("throughput: both sides warm up, then take turns")
    tokens = job()["training"]["global_batch_size"] * job()["data_pipeline"]["sequence_length"]
    file = bench.file("default", ENDLESS_STEPS)
    with local(file, prepared.parent, environment(bench.home), WORKERS) as theirs, bench.training() as ours:
        take_turns(ours, theirs)
        ours.send(signal.SIGCONT)  # so that it reports its last steps
        until(lambda: max(ours.times().values()) > ours.windows[-1][1])
        rates = ours.rates(tokens), theirs.rates(tokens)
    say(f"ratios of the blocks: {[round(ratio, 3) for ratio in block_ratios(*rates)]}")
    return rates


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""The whole road: REST to a trained model, on real Ray, through every fault that one machine can show."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from api.client import ApiProblem
from api.cluster import LocalCluster
from service.states import JobState
from service.views import JobView
from tests.road.conftest import House, attempt_processes, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]
Spec = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def undisturbed(house: House, tiny: Spec) -> JobView:
    """The same job without any fault: what the others are compared with."""
    with house.client() as client:
        job = client.submit(tiny("undisturbed"))
    return house.ended(job.id)


def test_a_job_submitted_over_rest_trains_to_its_end(house: House, undisturbed: JobView) -> None:
    assert undisturbed.state is JobState.SUCCEEDED, undisturbed.failure
    assert [phase.phase for phase in undisturbed.progress] == ["documents", "tokenizer", "shards", "training"]
    losses = house.losses(undisturbed.id)
    assert sorted(losses) == list(range(1, 201))
    result = undisturbed.result
    assert result is not None
    assert result["eval_loss"] < result["unigram_loss"] < losses[1]
    assert len(result["samples"]) == 3
    assert undisturbed.restarts == 0
    with house.client() as client:
        kept = [c for c in client.checkpoints(undisturbed.id) if c.state == "committed"]
        ranks = {(worker.generation, worker.rank) for worker in client.workers(undisturbed.id)}
        said = {line.rank for line in client.stream_logs(undisturbed.id, follow=False)}
    assert [c.step for c in kept] == [180, 200]
    assert all(Path(c.path, "manifest.json").is_file() for c in kept)
    assert ranks == {(0, -1), (0, 0), (0, 1)}, "the driver is rank -1"
    assert {0, 1} <= said


def test_a_second_run_reuses_the_prepared_shards(house: House, tiny: Spec, undisturbed: JobView) -> None:
    with house.client() as client:
        job = client.submit(
            {"kind": "data"} | {k: v for k, v in tiny("again").items() if k in ("name", "data_pipeline", "tokenizer")}
        )
    ended = house.ended(job.id)
    assert ended.state is JobState.SUCCEEDED, ended.failure
    assert all(phase.reused for phase in ended.progress)


def test_a_killed_worker_costs_steps_but_changes_no_loss(house: House, tiny: Spec, undisturbed: JobView) -> None:
    with house.client() as client:
        job = client.submit(tiny("killed-worker"))
        house.reaches(job.id, 30)
        victim = next(w for w in client.workers(job.id) if w.rank == 1)
        process = psutil.Process(victim.pid)
        assert process.cmdline()[0].startswith("ray::")
        assert "TrainWorker" in process.cmdline()[0]
        process.send_signal(signal.SIGKILL)
        ended = house.ended(job.id)
        workers = client.workers(job.id)
    assert ended.state is JobState.SUCCEEDED, ended.failure
    assert ended.restarts == 1
    assert ended.attempt == 1
    assert house.losses(job.id) == house.losses(undisturbed.id)
    assert ended.result is not None
    assert undisturbed.result is not None
    assert ended.result["eval_loss"] == undisturbed.result["eval_loss"]

    (died,) = house.events(job.id, "worker_died")
    assert died.data["pid"] == victim.pid
    assert died.data["rank"] == 1
    (resumed,) = house.events(job.id, "training_resumed")
    assert resumed.data["cost_seconds"] > 0
    assert 0 <= resumed.data["lost_steps"] <= 20, "no more than since the last checkpoint"
    # Whoever took the next step is another process, and it had read the checkpoint from disk.
    later = {w.rank: w.pid for w in workers if w.generation == 1}
    assert set(later) == {0, 1}
    assert victim.pid not in later.values()
    loaded = house.events(job.id, "checkpoint_loaded")
    assert {event.data["pid"] for event in loaded} == set(later.values())
    assert {event.data["step"] for event in loaded} == {resumed.data["step"] - 1}, "all from the same one"
    assert resumed.data["step"] > 20


def test_a_killed_service_adopts_its_job_and_loses_nothing(
    house: House, tiny: Spec, undisturbed: JobView, local_cluster: LocalCluster
) -> None:
    with house.client() as client:
        job = client.submit(tiny("killed-service"))
    house.reaches(job.id, 10)
    house.kill()
    house.start()
    ended = house.ended(job.id)
    assert ended.state is JobState.SUCCEEDED, ended.failure
    assert house.losses(job.id) == house.losses(undisturbed.id)
    with house.client() as client:
        assert [attempt.number for attempt in client.attempts(job.id)] == [1]
    assert ended.restarts == 0


def test_a_killed_driver_is_followed_by_a_second_attempt(house: House, tiny: Spec, undisturbed: JobView) -> None:
    with house.client() as client:
        job = client.submit(tiny("killed-driver"))
    house.reaches(job.id, 30)
    drivers = [p for p in house.cluster.processes() if "workers.driver" in p.cmdline() and job.id in " ".join(p.cmdline())]
    assert drivers
    for driver in drivers:
        driver.send_signal(signal.SIGKILL)
    ended = house.ended(job.id)
    assert ended.state is JobState.SUCCEEDED, ended.failure
    assert ended.attempt == 2
    assert ended.restarts == 1
    assert house.losses(job.id) == house.losses(undisturbed.id)


def test_pause_keeps_a_checkpoint_and_resume_goes_on_from_it(
    house: House, tiny: Spec, undisturbed: JobView, all_gone: Callable[[], bool]
) -> None:
    with house.client() as client:
        job = client.submit(tiny("paused"))
        house.reaches(job.id, 10)
        client.pause(job.id)
        until(lambda: client.get(job.id).state is JobState.PAUSED, "the pause")
        assert all_gone()
        paused_at = client.get(job.id).step
        assert paused_at is not None
        assert client.checkpoints(job.id)[-1].step == paused_at
        client.resume(job.id)
    ended = house.ended(job.id)
    assert ended.state is JobState.SUCCEEDED, ended.failure
    assert ended.restarts == 0, "a pause is no fault"
    assert house.losses(job.id) == house.losses(undisturbed.id)


@pytest.fixture
def all_gone(house: House) -> Callable[[], bool]:
    """Waits until no process is left of what the test started; those that were there before are others' (this test
    session is a driver on the cluster too)."""
    before = attempt_processes(house.cluster)

    def wait() -> bool:
        left: dict[int, str] = {}

        def look() -> bool:
            nonlocal left
            left = {pid: line for pid, line in attempt_processes(house.cluster).items() if pid not in before}
            return not left

        return until(look, "the attempt's processes to go", lambda: str(left))

    return wait


@pytest.mark.parametrize("phase", ["queued", "documents", "tokenizer", "shards", "training"])
def test_cancel_leaves_nothing_running(
    house: House, tiny: Spec, ray_cluster: None, all_gone: Callable[[], bool], tmp_path: Path, phase: str
) -> None:
    from ray.util import placement_group_table

    # Text that nobody prepared yet, and enough of it that every phase can be met.
    text = (Path(__file__).parents[2] / "workers").glob("*.py")
    lines = [line for file in sorted(text) for line in file.read_text().splitlines(keepends=True)]
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text(f"{phase} {number}\n" + "".join(lines[number:]))
    sources = [{"path": f"{tmp_path}/*.txt", "domain": "text"}]
    spec = tiny(f"cancelled-{phase}", data_pipeline={"sources": sources, "deduplicate": False}, training={"steps": 5000})
    with house.client() as client:
        job = client.submit(spec)
        if phase != "queued":
            until(lambda: phase in [p.phase for p in client.get(job.id).progress], f"phase {phase}")
        client.cancel(job.id)
        client.cancel(job.id)  # twice is once
        ended = house.ended(job.id)
        assert ended.state is JobState.CANCELLED
        assert client.cancel(job.id).state is JobState.CANCELLED
        with pytest.raises(ApiProblem) as refused:
            client.pause(job.id)
        assert refused.value.status == 409
    assert all_gone()
    states = {group["state"] for group in placement_group_table().values()}
    assert states <= {"REMOVED"}


def test_the_second_of_two_jobs_waits_and_says_why(house: House, tiny: Spec, undisturbed: JobView) -> None:
    with house.client() as client:
        cpus = {"gpu_config": {"cpus_per_worker": 2}}
        first = client.submit(tiny("first", **cpus))
        house.reaches(first.id, 1)
        second = client.submit(tiny("second", **cpus))
        waiting = until(lambda: (job := client.get(second.id)).why_pending and job, "the reason to wait")
        assert waiting.state is JobState.QUEUED
        assert "CPU" in waiting.why_pending
        client.cancel(first.id)
        house.reaches(second.id, 1)
        client.cancel(second.id)
    assert house.ended(first.id).state is JobState.CANCELLED
    assert house.ended(second.id).state is JobState.CANCELLED


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"\x00\x01\x02" * 50, "binary"), (b"fine so far\xff\xfe\xfd and on\n" * 9, "UTF-8")],
    ids=["empty", "binary", "broken UTF-8"],
)
def test_bad_data_ends_in_an_error_that_names_the_file(
    house: House, tiny: Spec, tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "input.txt"
    path.write_bytes(content)
    with house.client() as client:
        job = client.submit(tiny("bad-data", data_pipeline={"sources": [{"path": str(path)}]}))
    ended = house.ended(job.id)
    assert ended.state is JobState.FAILED
    assert ended.failure is not None
    assert words in ended.failure["detail"]
    assert str(path) in ended.failure["detail"]
    assert ended.failure["pointer"].startswith("/data_pipeline/sources/0")
    assert ended.attempt == 1, "what the user must mend is not tried again"


def test_without_ray_the_same_job_has_the_same_losses_and_shards(
    house: House, tiny: Spec, undisturbed: JobView, tmp_path: Path
) -> None:
    spec_file = tmp_path / "job.yaml"
    spec_file.write_text(yaml.safe_dump(tiny("local")))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*command, "-m", "workers.local", str(spec_file), "--out", str(out)],
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=200,
    )
    figures = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    ours = {each["step"]: each["values"]["loss"] for each in figures if "loss" in each["values"]}
    assert ours == house.losses(undisturbed.id)
    (prepared,) = (p for p in (out / "prepared").iterdir() if (p / "manifest.json").is_file())
    through_ray = house.home / "prepared" / prepared.name
    files = [p.relative_to(prepared) for p in sorted(prepared.rglob("*")) if p.is_file()]
    assert files
    assert all((through_ray / file).read_bytes() == (prepared / file).read_bytes() for file in files)

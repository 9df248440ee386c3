"""What a rank writes down for its driver at every step."""

from pathlib import Path

import httpx
import pytest

from tests.workers.test_reporter import Service, order
from workers import reporter
from workers.rank import Place, Progress, RankReporter, attempt_dir, progress_path, read_progress


def place(generation: int) -> Place:
    return Place(generation, rank=1, world_size=2, local_rank=1, master_address="127.0.0.1", master_port=1, node="node")


@pytest.fixture(autouse=True)
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    service, client = Service(), httpx.Client
    monkeypatch.setattr(
        reporter.httpx, "Client", lambda **named: client(**{**named, "transport": httpx.MockTransport(service)})
    )
    return service


def test_the_driver_reads_the_newest_step_of_the_newest_generation(tmp_path: Path) -> None:
    job = order(tmp_path)
    attempt_dir(job).mkdir(parents=True)
    path = progress_path(job, 1)
    assert read_progress(path) is None
    for generation, steps in ((0, range(998, 1002)), (1, range(7, 10))):
        rank = RankReporter(job, place(generation))
        for step in steps:
            rank.heartbeat(step)
            progress = read_progress(path)
            assert isinstance(progress, Progress)
            assert (progress.generation, progress.first_step, progress.last_step) == (generation, steps[0], step)
            assert progress.first_time <= progress.last_time
        rank.close()


def test_a_file_that_was_only_just_made_says_nothing_yet(tmp_path: Path) -> None:
    path = tmp_path / "progress-0.json"
    path.touch()
    assert read_progress(path) is None


def test_a_full_disk_does_not_end_a_step(tmp_path: Path) -> None:
    rank = RankReporter(order(tmp_path), place(0))  # its directory is missing: every write fails
    rank.heartbeat(1)
    assert rank.last_step == 1
    rank.close()

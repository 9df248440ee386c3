"""What carries the steps out: here, or on a cluster; and what becomes of a step that is told to stop."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from data.errors import SourceError
from data.executors import Executor, SerialExecutor
from data.prepare import prepare
from data.spec import TokenizerSpec
from tests.data.conftest import data_spec, json_lines, texts, write
from tests.data.test_grade_training import labelled
from tests.data.test_prepare import files

TOKENIZER = TokenizerSpec(vocab_size=300)


class Stopped(Exception):
    pass


@pytest.fixture(params=["serial", pytest.param("ray", marks=pytest.mark.cluster)])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param == "serial":
        yield SerialExecutor()
    else:
        request.getfixturevalue("ray_cluster")
        from data.ray_executor import RayDataExecutor

        yield RayDataExecutor()


def test_every_task_has_a_result_and_an_error_of_the_users_is_raised_as_it_is(executor: Executor) -> None:
    def halved(task: int) -> int:
        if task % 2:
            raise SourceError(f"{task} is odd", pointer=f"/numbers/{task}")
        return task // 2

    assert sorted(executor.map(halved, range(0, 80, 2))) == list(range(40))  # more than a small cluster makes blocks
    with pytest.raises(SourceError, match="7 is odd") as raised:
        list(executor.map(halved, (7,)))
    assert raised.value.pointer == "/numbers/7"


@pytest.mark.parametrize(
    ("tasks", "cpus", "blocks"),
    [(1, 2, 1), (25, 2, 25), (100, 2, 32), (100, 0, 32), (100, 4, 64), (100, 16, 100), (10**5, 256, 1024)],
)
def test_many_tasks_share_blocks_and_every_cpu_has_several(
    tasks: int, cpus: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data import ray_executor

    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": float(cpus)} if cpus else {})
    assert ray_executor._blocks(tasks) == blocks


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_what_a_task_may_hold_is_reserved_for_it_up_to_what_a_machine_has() -> None:
    import ray

    from data.ray_executor import RayDataExecutor

    def reserved(task: SimpleNamespace) -> float:
        return float(ray.get_runtime_context().get_assigned_resources().get("memory", 0))

    most = int(ray.cluster_resources()["memory"])
    for asked, given in ((0, 0), (2**20, 2**20), (2**60, most)):
        assert list(RayDataExecutor().map(reserved, [SimpleNamespace(memory_bytes=asked)])) == [given]


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("step", ["train_classifier", "train", "measure"])
def test_a_stop_does_not_wait_for_a_long_step_and_ends_its_process(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training of a classifier and of the tokenizer, and the losses of counting: one task that is a library's loop, without a
    line of Python in which a signal would be noticed."""
    from data import ray_executor

    monkeypatch.setattr(ray_executor, "_PULSE_SECONDS", 0.01)
    written = tmp_path / "process"

    class EndlessStep:
        def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
            endless = fn.__name__ == step

            def run(task: Any) -> Any:
                if endless:
                    written.with_suffix(".part").write_text(str(os.getpid()))
                    written.with_suffix(".part").rename(written)
                    sum(itertools.repeat(0))
                return fn(task)

            return ray_executor.RayDataExecutor(pulse).map(run, shards)

    running: list[psutil.Process] = []

    def pulse() -> None:
        if written.exists():
            running.append(psutil.Process(int(written.read_text())))
            raise Stopped

    examples = [{"path": write(tmp_path / "examples.jsonl", labelled(1))}]
    stages = ["normalise", {"stage": "grade", "training": {"labelled": examples}}]
    spec = data_spec(write(tmp_path / "a.jsonl", json_lines(texts(60))), stages=stages)
    with pytest.raises(Stopped):
        prepare(spec, TOKENIZER, tmp_path / "ray", EndlessStep(), lambda progress: None)
    [process] = running
    process.wait(timeout=60)  # for ever, if the loop goes on
    again = prepare(spec, TOKENIZER, tmp_path / "ray", SerialExecutor(), lambda progress: None)
    assert files(again.path) == files(prepare(spec, TOKENIZER, tmp_path / "a", SerialExecutor(), lambda progress: None).path)

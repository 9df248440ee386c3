"""Several preparations at once below one root: the same data set, or others of the same files."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data.executors import SerialExecutor
from data.locks import locked
from data.prepare import Progress, prepare
from data.spec import DataSpec
from tests.data.conftest import data_spec, json_lines, texts, write
from tests.data.killed import TOKENIZER, files

HOLD = """
import sys
from pathlib import Path
from data.locks import locked
with locked(Path(sys.argv[1]), lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""
PREPARE = """
import sys
from pathlib import Path
from data.executors import SerialExecutor
from data.prepare import prepare
from data.spec import DataSpec
from tests.data.killed import TOKENIZER
print("ready", flush=True)
sys.stdin.readline()
spec = DataSpec.model_validate_json(sys.argv[1])
print(prepare(spec, TOKENIZER, Path(sys.argv[2]), SerialExecutor(), lambda progress: None).path)
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    for part in range(3):
        write(tmp_path / "text" / f"{part}.jsonl", json_lines(texts(60, seed=part)))
    return data_spec(str(tmp_path / "text" / "*.jsonl"), held_out_fraction=0.1, shard_documents=1).model_copy(
        update={"shard_documents": 50}
    )


def alone(spec: DataSpec, root: Path) -> Path:
    return prepare(spec, TOKENIZER, root, SerialExecutor(), lambda progress: None).path


@contextmanager
def held(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """By another process, until that is killed."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_who_waits_says_so_and_goes_on_when_the_other_is_killed(spec: DataSpec, tmp_path: Path) -> None:
    whole = alone(spec, tmp_path / "alone")
    steps: list[Progress] = []
    with held(tmp_path / "root" / f".{whole.name}.lock") as other:

        def on_progress(progress: Progress) -> None:
            steps.append(progress)
            if progress.waiting:
                other.kill()

        prepared = prepare(spec, TOKENIZER, tmp_path / "root", SerialExecutor(), on_progress)
    assert not prepared.reused
    assert files(prepared.path) == files(whole)
    waiting = [step for step in steps if step.waiting]
    assert {(step.phase, step.done, step.total) for step in waiting} == {("documents", 0, None)}
    assert not steps[-1].waiting


def test_who_waits_can_be_cancelled_and_leaves_the_other_alone(spec: DataSpec, tmp_path: Path) -> None:
    class Cancelled(Exception):
        pass

    def on_progress(progress: Progress) -> None:
        if progress.waiting:
            raise Cancelled

    name = alone(spec, tmp_path / "alone").name
    with held(tmp_path / "root" / f".{name}.lock"), pytest.raises(Cancelled):
        prepare(spec, TOKENIZER, tmp_path / "root", SerialExecutor(), on_progress)
    assert not list((tmp_path / "root").glob("*.partial"))


def test_a_lock_that_a_killed_process_left_is_no_lock(tmp_path: Path) -> None:
    with held(tmp_path / "lock") as other:
        other.kill()
        other.wait()
        assert (tmp_path / "lock").exists()

        def pulse() -> None:
            raise AssertionError("it waits for the dead")

        with locked(tmp_path / "lock", pulse):
            pass


def test_a_lock_goes_with_its_holder_and_still_keeps_others_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.locks._POLL_SECONDS", 0.0)
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(100):
            with locked(tmp_path / "lock", lambda: None):
                inside.append(number)
                most.append(len(inside))
                os.sched_yield()
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 400
    assert not (tmp_path / "lock").exists()


def test_different_data_sets_of_the_same_files_are_prepared_at_once(spec: DataSpec, tmp_path: Path) -> None:
    changes: list[dict[str, object]] = [{}, {"seed": 5}, {"max_document_bytes": 10_000}, {"deduplicate": "minhash"}]
    specs = [DataSpec.model_validate({**spec.model_dump(), **change}) for change in changes]
    processes = []
    for each in specs:
        command = [sys.executable, "-c", PREPARE, each.model_dump_json(), str(tmp_path / "root")]
        processes.append(subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    answers = [process.communicate("go\n")[0].strip() for process in processes]
    assert len(set(answers)) == len(specs)
    for each, answer in zip(specs, answers, strict=True):
        whole = alone(each, tmp_path / "alone")
        assert whole.name == Path(answer).name
        assert files(Path(answer)) == files(whole)

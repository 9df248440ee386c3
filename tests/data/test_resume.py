"""Whoever dies, wherever: what was done stays done, and the bytes are those of an undisturbed preparation."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from api.cluster import LocalCluster
from data.errors import MantaError
from data.executors import Executor, SerialExecutor
from data.prepare import Prepared, prepare
from data.spec import DataSpec, SourceSpec
from data.stages.registry import PRESETS
from tests.data.conftest import WORDS, data_spec, json_lines, texts, write
from tests.data.killed import TOKENIZER, Answer, files
from tests.data.test_grade_training import labelled

ROOT = Path(__file__).parents[2]


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    """Two cells, two files and two shards of one of them, near duplicates."""
    write(tmp_path / "en" / "0.jsonl", json_lines(texts(40)))
    write(tmp_path / "en" / "1.jsonl", json_lines([*texts(9, seed=1), *(text + " indeed" for text in texts(40)[:9])]))
    write(tmp_path / "zh" / "0.jsonl", json_lines([f"第{i}回 {text}" for i, text in enumerate(texts(25, seed=2))]))
    return data_spec(
        SourceSpec(path=str(tmp_path / "en" / "*.jsonl")),
        SourceSpec(path=str(tmp_path / "zh" / "*.jsonl"), language="zh", domain="stories"),
        shard_documents=1,
        deduplicate={"method": "minhash", "memory_bytes": 2**18},  # two tasks each round
        held_out_fraction=0.2,
        documents=True,
    ).model_copy(update={"shard_documents": 30})


@pytest.fixture
def everything(spec: DataSpec, tmp_path: Path) -> DataSpec:
    """Every stage and every setting that changes bytes."""
    languages = ("en", "zh")
    for language in languages:
        lines = [{"text": story(i, language), "url": f"https://example.org/{i}"} for i in range(60)]
        lines += [{"text": f"Copy. {line['text']}"} for line in lines[::7]]
        for part in range(3):
            content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines[part::3])
            write(tmp_path / f"every.{language}" / f"{part}.jsonl", content.encode())
    write(tmp_path / "examples.jsonl", labelled(1))
    write(tmp_path / "exam.jsonl", json_lines([story(i, language) for language in languages for i in range(1, 6)]))
    write(tmp_path / "words.txt", "quiet harbour\ncopper-meadow\n春秋\n".encode())
    changed = {"url": {"blocked_words": ["casino"]}, "language": {"keep": languages, "min_confidence": None}}
    web = [stage.model_dump() for stage in PRESETS["web"]]
    grade = {"stage": "grade", "training": {"labelled": [{"path": str(tmp_path / "examples.jsonl")}]}}
    stages = [*(stage | changed.get(stage["stage"], {}) for stage in web), grade]
    return DataSpec.model_validate(
        {
            "sources": [
                {"path": str(tmp_path / f"every.{language}" / "*.jsonl"), "language": language, "url_field": "url"}
                for language in languages
            ],
            "stages": stages,
            "sequence_length": 64,
            "curriculum": [{"sequence_length": 32, "fraction": 0.5}, {"sequence_length": 64, "fraction": 0.5}],
            "document_alignment": 8,
            "deduplicate": {"method": "minhash", "keep": "longest", "min_agreement": 0.5, "memory_bytes": 2**18},
            "held_out_fraction": 0.1,
            "decontaminate": {"test_sets": [{"path": str(tmp_path / "exam.jsonl")}]},
            "keep_dropped": True,
            "shard_documents": 1,
            "document_tokens": {"min": 8, "max": 100},
            "documents": True,
            "seed": 7,
        }
    ).model_copy(update={"shard_documents": 20})


def story(number: int, language: str) -> str:
    """Ten sentences, no two alike."""
    draw = random.Random(number)
    if language == "zh":
        return "\n".join("".join(draw.choices("山水春秋花月风雨江湖人天地日云", k=20)) + "。" for _ in range(10))
    words = [*WORDS, "that", "have", "with", "of", "the", "to", "and", "be"]
    return "\n".join(f"In year {draw.randrange(9999)} the {' '.join(draw.sample(words, 12))}." for _ in range(10))


def prepared_in(root: Path, spec: DataSpec, executor: Executor, **tokenizer: Any) -> Prepared:
    return prepare(spec, TOKENIZER.model_copy(update=tokenizer), root, executor, lambda progress: None)


def _killed_everywhere(spec: DataSpec, folder: Path) -> Answer:
    command = [sys.executable, "-m", "tests.data.killed", spec.model_dump_json(), str(folder)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    answer: Answer = json.loads(done.stdout.splitlines()[-1])
    assert len(answer["killed"]) >= 4
    assert all(attempt["killed"] for attempt in answer["killed"])
    assert not any(attempt["killed"] for attempt in answer["again"])
    return answer


def _written(steps: list[str]) -> list[Path]:
    """With the folder of each."""
    return [Path(step.split()[1]) for step in steps if step.startswith("replace")]


def test_a_process_killed_at_any_kind_of_step_is_taken_up_there(spec: DataSpec, tmp_path: Path) -> None:
    answer = _killed_everywhere(spec, tmp_path / "at")
    everything = [path.name for path in _written(answer["whole"]["steps"])]
    for name in ("bucket-000000.i64", "pairs-000000.i64", "tokenizer.model", "report.json", "inputs.json"):
        assert name in everything
    assert len([name for name in everything if name.startswith("documents-")]) >= 4
    assert len([name for name in everything if name.startswith("shard-")]) >= 4
    assert all(answer["same"])
    for killed, again in zip(answer["killed"], answer["again"], strict=True):
        twice = {path for path in _written(killed["steps"]) if path.name not in ("corpus.json", "inputs.json")}
        twice.intersection_update(_written(again["steps"]))
        # Of the task that was under way, what lies beside the file that says it is done.
        assert len({path.with_suffix("") for path in twice}) <= 1, twice
        assert not any(path.suffix == ".json" and path.name != "report.json" for path in twice), twice


def test_a_process_killed_while_it_gives_up_gives_up_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines([text[:7] for text in texts(5)]))
    answer = _killed_everywhere(data_spec(path), tmp_path / "at")
    assert answer["whole"]["steps"][-1] == "error not_enough_data"
    assert {attempt["steps"][-1] for attempt in answer["again"]} == {"error not_enough_data"}
    assert all(answer["same"])


def test_a_preparation_is_stopped_while_a_task_runs_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from data.ray_executor import _pulsed

    class Stopped(Exception):
        pass

    monkeypatch.setattr("data.ray_executor._PULSE_SECONDS", 0.0)
    seen: list[int] = []
    never = threading.Event()

    def results() -> Iterator[int]:
        yield 1
        never.wait()

    def pulse() -> None:
        if seen:
            raise Stopped

    with pytest.raises(Stopped):
        seen.extend(_pulsed(results, pulse))  # as they come
    assert seen == [1]
    never.set()


def test_what_ray_raises_is_raised_here() -> None:
    from data.ray_executor import _pulsed

    def results() -> Iterator[int]:
        yield 1
        raise OSError("the disk is full")

    found = _pulsed(results, lambda: None)
    assert next(found) == 1
    with pytest.raises(OSError, match="the disk is full"):
        next(found)


def _seen_before(mark: Path) -> bool:
    """Whether another was here before: of tasks that begin at once, one is first."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return True
    return False


class Dying:
    """Tasks on Ray; of each kind one kills its worker as it is about to give a file its name. Every run leaves a file."""

    def __init__(self, folder: Path, dying: Sequence[str], once: bool = True) -> None:
        self.folder, self.dying, self.once = folder, dying, once
        folder.mkdir()

    def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
        from data.ray_executor import RayDataExecutor

        folder, name, dies, once = self.folder, fn.__name__, fn.__name__ in self.dying, self.once

        def run(task: Any) -> Any:
            # What is kept aside is numbered anew for every step.
            which = zlib.crc32(f"{task.index} {getattr(task, 'output', '')}".encode())
            (folder / f"{name}-{which}-{os.urandom(8).hex()}").touch()
            if dies and not (once and _seen_before(folder / f"killed-{name}")):
                os.replace = lambda *paths: os._exit(1)
            return fn(task)

        return RayDataExecutor().map(run, shards)

    def runs(self, name: str) -> list[int]:
        """How often each task ran."""
        tasks = [path.name.split("-")[1] for path in self.folder.glob(f"{name}-*")]
        return list(Counter(tasks).values())


KINDS = (
    *("train_classifier", "clean_files", "bucket", "compare", "gather", "merge", "scan"),
    *("train", "pack_documents", "write_aside", "measure"),
)


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_a_ray_worker_killed_in_any_kind_of_task_costs_that_task_alone(spec: DataSpec, tmp_path: Path) -> None:
    write(tmp_path / "examples.jsonl", labelled(1))
    stages = [*spec.stages, {"stage": "grade", "training": {"labelled": [{"path": str(tmp_path / "examples.jsonl")}]}}]
    changed = {"stages": stages, "decontaminate": True, "keep_dropped": True, "shard_documents": 1}
    spec = DataSpec.model_validate({**spec.model_dump(), **changed}).model_copy(update={"shard_documents": 30})
    whole = prepared_in(tmp_path / "whole", spec, SerialExecutor())
    dying = Dying(tmp_path / "runs", KINDS)
    again = prepared_in(tmp_path / "ray", spec, dying)
    assert files(again.path) == files(whole.path)
    for kind in KINDS:
        runs = dying.runs(kind)
        assert sorted(runs) == [1] * (len(runs) - 1) + [2], kind


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_a_task_that_always_kills_its_worker_ends_the_attempt_and_the_next_goes_on_there(
    spec: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import RayError

    monkeypatch.setattr("data.ray_executor._MAX_RETRIES", 0)
    with pytest.raises(RayError) as raised:
        prepared_in(tmp_path / "ray", spec, Dying(tmp_path / "first", ["pack_documents"], once=False))
    assert not isinstance(raised.value, MantaError)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "ray").glob(".cleaned/documents-*.arrow")}
    with pytest.raises(RayError):
        prepared_in(tmp_path / "ray", spec, Dying(tmp_path / "second", ["pack_documents"], once=False))
    assert len(done) == len(list((tmp_path / "first").glob("clean_files-*")))
    assert {path: path.stat().st_mtime_ns for path in done} == done
    again = prepared_in(tmp_path / "ray", spec, SerialExecutor())
    assert files(again.path) == files(prepared_in(tmp_path / "whole", spec, SerialExecutor()).path)


DRIVER = """
import os, signal, sys
from pathlib import Path
import ray
from data.prepare import prepare
from data.ray_executor import RayDataExecutor
from data.spec import DataSpec, TokenizerSpec

def on_progress(progress):
    if progress.phase == "shards" and progress.done:
        os.kill(os.getpid(), signal.SIGKILL)

ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
spec = DataSpec.model_validate_json(sys.argv[1])
prepare(spec, TokenizerSpec(vocab_size=400), Path(sys.argv[2]), RayDataExecutor(), on_progress)
"""


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_a_driver_killed_on_the_cluster_is_replaced(spec: DataSpec, tmp_path: Path, local_cluster: LocalCluster) -> None:
    record = local_cluster.record()
    assert record is not None
    whole = prepared_in(tmp_path / "whole", spec, SerialExecutor())
    environment = os.environ | {"RAY_ADDRESS": f"127.0.0.1:{record.gcs_port}"}
    command = [sys.executable, "-c", DRIVER, spec.model_dump_json(), str(tmp_path / "ray")]
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == -signal.SIGKILL
    [work] = (tmp_path / "ray").glob("*.partial")
    markers = [json.loads(path.read_bytes()) for path in work.glob("scratch/shard-*.json")]  # a shard without one is made again
    shards = [work / shard["file"] for marker in markers for shard in marker["shards"]]
    finished = {path: path.stat().st_mtime_ns for path in shards}
    assert finished
    again = prepared_in(tmp_path / "ray", spec, SerialExecutor())
    assert files(again.path) == files(whole.path)
    kept = {again.path / "shards" / path.name: at for path, at in finished.items()}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("packing", ["best_fit", "one_document"])
def test_any_number_of_ray_workers_gives_the_same_bytes(
    packing: str, everything: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.data

    from data.ray_executor import RayDataExecutor

    monkeypatch.setattr("data.sources.listing._EXTENT_BYTES", 4096)  # several of each file
    cpus = (1, 2, 4)
    if packing == "one_document":
        everything = everything.model_copy(update={"packing": packing, "curriculum": (), "length_buckets": (16, 32)})
        cpus = (3,)  # what comes before the rows is the same
    lexicon = str(tmp_path / "words.txt")
    limits = ray.data.DataContext.get_current().execution_options
    first = prepared_in(tmp_path / "serial", everything, SerialExecutor(), lexicon=lexicon)
    assert {"near_duplicate", "test_set_overlap"} <= first.manifest.drops.keys()
    before = limits.resource_limits
    try:
        for limit in cpus:
            limits.resource_limits = ray.data.ExecutionResources(cpu=limit)
            again = prepared_in(tmp_path / f"{limit}", everything, RayDataExecutor(), lexicon=lexicon)
            assert files(again.path) == files(first.path)
    finally:
        limits.resource_limits = before

"""What abandoned jobs left goes when a preparation ends well; what a running or paused one needs stays."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data import leftovers
from data.errors import NotEnoughData
from data.executors import SerialExecutor
from data.files import checksum
from data.leftovers import lock_of
from data.locks import locked
from data.prepare import Progress, prepare
from data.spec import DataSpec
from tests.data.conftest import data_spec, json_lines, texts, write
from tests.data.killed import TOKENIZER, files

LONG = 31 * 24 * 60 * 60


class Paused(Exception):
    pass


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    for part in range(3):
        write(tmp_path / "text" / f"{part}.jsonl", json_lines(texts(25, seed=part)))
    spec = data_spec(str(tmp_path / "text" / "*.jsonl"), held_out_fraction=0.1)
    return spec.model_copy(update={"shard_documents": 1})


def prepared(spec: DataSpec, root: Path, on_progress: Callable[[Progress], None] = lambda progress: None) -> Path:
    return prepare(spec, TOKENIZER, root, SerialExecutor(), on_progress).path


def another(spec: DataSpec, tmp_path: Path) -> DataSpec:
    """Of other files."""
    path = write(tmp_path / "another" / "0.jsonl", json_lines(texts(25, seed=77)))
    return spec.model_copy(update={"sources": (spec.sources[0].model_copy(update={"path": path}),)})


def pause(spec: DataSpec, root: Path) -> Path:
    """At its shards; the unfinished directory."""

    def on_progress(progress: Progress) -> None:
        if progress.phase == "shards" and progress.done:
            raise Paused

    with pytest.raises(Paused):
        prepared(spec, root, on_progress)
    [work] = root.glob("*.partial")
    return work


def age(*paths: Path) -> None:
    """Nothing was written for a month, there and below."""
    then = time.time() - LONG
    for path in paths:
        for each in (path, *path.rglob("*")):
            os.utime(each, (then, then))


def parts(root: Path) -> set[Path]:
    return set((root / ".cleaned").glob("documents-*.arrow"))


def test_a_paused_preparation_stays_and_goes_on(spec: DataSpec, tmp_path: Path) -> None:
    root = tmp_path / "root"
    work = pause(spec, root)
    done = {path: path.stat().st_mtime_ns for path in [*parts(root), *work.rglob("*.u32")]}
    prepared(another(spec, tmp_path), root)
    path = prepared(spec, root)
    assert files(path) == files(prepared(spec, tmp_path / "alone"))
    stayed = {path: path.stat().st_mtime_ns for path in parts(root)}
    stayed |= {work / each.relative_to(path): each.stat().st_mtime_ns for each in path.rglob("*.u32")}
    assert len(done) >= 4
    assert stayed.items() >= done.items()


# What of an old preparation is new.
LIFE: dict[str, str] = {
    "a shard": "{work}/shards/*.u32",
    "a marker": "{work}/scratch/*.json",
    "an attempt": ".cleaned/claims/*",
    "a part": ".cleaned/documents-*.arrow",
}


@pytest.mark.parametrize("pattern", LIFE.values(), ids=LIFE)
def test_one_of_which_anything_was_written_lately_stays(pattern: str, spec: DataSpec, tmp_path: Path) -> None:
    root = tmp_path / "root"
    work = pause(spec, root)
    age(root)
    os.utime(sorted(root.glob(pattern.format(work=work.name)))[0])
    before = parts(root)
    prepared(another(spec, tmp_path), root)
    assert work.is_dir()
    assert before < parts(root)


def test_one_that_was_abandoned_goes_with_its_parts_and_can_be_begun_anew(spec: DataSpec, tmp_path: Path) -> None:
    root = tmp_path / "root"
    work = pause(spec, root)
    before = parts(root)
    age(root)
    path = prepared(another(spec, tmp_path), root)
    assert sorted(each.name for each in root.iterdir()) == sorted([".cleaned", path.name])
    assert not before & parts(root)
    assert [each.name for each in (root / ".cleaned" / "claims").iterdir()] == [path.name]
    again = prepared(spec, root)
    assert again.name == work.stem
    assert files(again) == files(prepared(spec, tmp_path / "alone"))


def test_one_that_somebody_works_on_stays_however_old(spec: DataSpec, tmp_path: Path) -> None:
    root = tmp_path / "root"
    work = pause(spec, root)
    before = parts(root)
    age(root)
    with locked(lock_of(root, work.stem), lambda: None):
        prepared(another(spec, tmp_path), root)
        assert lock_of(root, work.stem).exists()
    assert work.is_dir()
    assert before < parts(root)


def test_waste_and_locks_of_the_dead_go_and_a_lock_that_is_held_stays(spec: DataSpec, tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / "0123.waste" / "shards" / "a.u32", b"half")
    write(root / ".0123.lock", b"")
    with locked(root / ".4567.lock", lambda: None):
        path = prepared(spec, root)
        assert sorted(each.name for each in root.iterdir()) == sorted([".cleaned", path.name, ".4567.lock"])


def test_what_a_late_task_writes_beside_a_whole_data_set_goes_with_the_next_and_the_data_set_stays(
    spec: DataSpec, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    whole = prepared(spec, root)
    before = files(whole)
    late = write(root / f"{whole.name}.partial" / "shards" / "train-000.u32", b"late")
    with locked(lock_of(root, whole.name), lambda: None):
        prepared(another(spec, tmp_path), root)
        assert Path(late).exists()
    prepared(another(spec, tmp_path).model_copy(update={"seed": 1}), root)
    assert not list(root.glob("*.partial"))
    assert files(whole) == before


def test_a_preparation_that_fails_removes_nothing_of_others(spec: DataSpec, tmp_path: Path) -> None:
    root = tmp_path / "root"
    work = pause(spec, root)
    write(root / "0123.waste" / "a.u32", b"half")
    age(root)
    before = parts(root)
    path = write(tmp_path / "short" / "0.jsonl", json_lines(["a"]))
    with pytest.raises(NotEnoughData):
        prepared(data_spec(path), root)
    assert work.is_dir()
    assert (root / "0123.waste").is_dir()
    assert before < parts(root)


def test_classifiers_stay_while_a_data_set_claims_them_and_a_month_more(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(tmp_path / "poor" / "0.jsonl", json_lines([f"!!! {i} $$$ buy buy" for i in range(60)]))
    write(tmp_path / "good" / "0.jsonl", json_lines(texts(60, seed=8)))
    training = {name: [{"path": str(tmp_path / name / "*.jsonl")}] for name in ("good", "poor")} | {"min_examples": 20}
    path = write(tmp_path / "text" / "0.jsonl", json_lines(texts(60)))
    graded = data_spec(path, stages=["normalise", {"stage": "grade", "keep": None, "training": training}])
    with_classifier = prepared(graded, root)
    [made] = (root / ".classifiers").iterdir()
    killed = write(root / ".classifiers" / ".tmp-0123.safetensors-x", b"half")
    age(made)
    digest = checksum(made)
    prepared(data_spec(path), root)
    assert checksum(made) == digest
    assert not Path(killed).exists()
    shutil.rmtree(with_classifier)
    os.utime(made)
    prepared(data_spec(path, seed=1), root)
    assert made.exists()
    age(made)
    prepared(data_spec(path, seed=2), root)
    assert not made.exists()


def test_digests_that_nobody_asked_for_in_a_month_go(spec: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, real = tmp_path / "root", time.time
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + 60) * 10**9))
    prepared(another(spec, tmp_path), root)
    prepared(spec, root)
    other, mine = sorted((root / ".digests").iterdir(), key=lambda path: b"1.jsonl" in path.read_bytes())
    age(other, mine)
    prepared(spec.model_copy(update={"seed": 1}), root)
    assert (other.exists(), mine.exists()) == (False, True)


def test_what_was_claimed_before_stays_claimed(tmp_path: Path) -> None:
    leftovers.claim(tmp_path, "a", [tmp_path / "documents-1.arrow"], lambda: None)
    leftovers.claim(tmp_path, "a", [tmp_path / "0123.safetensors"], lambda: None)
    made = [write(tmp_path / ".cleaned" / f"documents-{number}.arrow", b"") for number in (1, 2)]
    (tmp_path / "a.partial").mkdir()
    leftovers.tidy(tmp_path, lambda: None)
    assert [Path(path).exists() for path in made] == [True, False]

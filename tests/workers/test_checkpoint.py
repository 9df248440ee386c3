"""The checkpoint store: whole or not there, written by many ranks, read by any number, without a default process group."""

import errno
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from workers import checkpoint_files
from workers.checkpoint import MANIFEST, CheckpointStore, CheckpointWriteError
from workers.checkpoint_files import copy_checkpoint


@dataclass(frozen=True)
class Member:
    rank: int
    world_size: int
    generation: int = 1


class Events(list[dict[str, Any]]):
    def of(self, kind: str) -> list[int]:
        return [event["step"] for event in self if event["type"] == kind]


def state(value: float) -> dict[str, Any]:
    return {
        "model": {"weight": torch.full((4, 3), value), "bias": torch.arange(3).to(torch.bfloat16) + value},
        "optimizer": {"weight.exp_avg": torch.full((4, 3), value / 2), "step": int(value)},
        "cursor": int(value),
        "order": {"seed": 7},
    }


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def store(tmp_path: Path, events: Events) -> Iterator[CheckpointStore]:
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=2, on_event=events.append)
    yield store
    store.close()


def loaded(store: CheckpointStore) -> dict[str, Any]:
    info = store.latest()
    assert info is not None
    target = state(0.0)
    store.load(info, target)
    return target


def test_nothing_is_saved_nothing_is_latest(store: CheckpointStore) -> None:
    assert store.latest() is None


def test_what_is_loaded_is_what_was_saved(store: CheckpointStore, events: Events) -> None:
    store.save(20, state(20.0))
    store.wait()
    target = loaded(store)
    assert torch.equal(target["model"]["weight"], state(20.0)["model"]["weight"])
    assert torch.equal(target["model"]["bias"], state(20.0)["model"]["bias"])
    assert (target["cursor"], target["order"], target["optimizer"]["step"]) == (20, {"seed": 7}, 20)
    info = store.latest()
    assert info is not None
    assert info.path.name == "step-00000020"
    assert info.bytes == events[0]["bytes"] > 0
    assert events.of("committed") == [20]


def test_training_goes_on_while_the_copy_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write = threading.Event()
    write_rank = CheckpointStore._write_rank

    def held(self: CheckpointStore, *args: Any) -> None:
        may_write.wait()
        write_rank(self, *args)

    monkeypatch.setattr(CheckpointStore, "_write_rank", held)
    store = CheckpointStore(tmp_path, asynchronous=True)
    live = state(1.0)
    store.save(1, live)
    live["model"]["weight"].fill_(99.0)
    live["order"]["seed"] = 99
    may_write.set()
    store.wait()
    target = loaded(store)
    assert torch.equal(target["model"]["weight"], torch.full((4, 3), 1.0))
    assert target["order"] == {"seed": 7}
    store.close()


def test_synchronous_saves_are_committed_on_return(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, asynchronous=False)
    store.save(3, state(3.0))
    assert [info.step for info in store.committed()] == [3]
    store.close()


def test_only_the_last_ones_are_kept(store: CheckpointStore, events: Events) -> None:
    for step in (10, 20, 30, 40):
        store.save(step, state(float(step)))
    store.wait()
    assert [info.step for info in store.committed()] == [30, 40]
    assert events.of("committed") == [10, 20, 30, 40]
    assert events.of("deleted") == [10, 20]


def largest_file(path: Path) -> Path:
    return max((p for p in path.iterdir() if p.name != MANIFEST), key=lambda p: p.stat().st_size)


def flip_a_bit(path: Path) -> None:
    file = largest_file(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(path: Path) -> None:
    file = largest_file(path)
    file.write_bytes(file.read_bytes()[:-1])


def remove_a_file(path: Path) -> None:
    largest_file(path).unlink()


def remove_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def tear_manifest(path: Path) -> None:
    manifest = path / MANIFEST
    manifest.write_text(manifest.read_text()[:40])


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, remove_a_file, remove_manifest, tear_manifest])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(store: CheckpointStore, events: Events, damage: Any) -> None:
    store.save(10, state(10.0))
    store.save(20, state(20.0))
    store.wait()
    damage(store.directory / "step-00000020")
    assert loaded(store)["cursor"] == 10
    assert 20 in events.of("torn")


def test_a_copy_is_whole_and_is_left_alone_by_what_becomes_of_the_first(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(10, state(10.0))
    store.wait()
    source, other = store.directory / "step-00000010", CheckpointStore(tmp_path / "other")
    for _ in range(2):
        copy_checkpoint(source, other.directory)
    for step in (20, 30):
        store.save(step, state(float(step)))
    store.wait()
    assert not source.exists()
    assert loaded(other)["cursor"] == 10
    with pytest.raises(OSError, match="is no whole checkpoint"):
        copy_checkpoint(source, other.directory.parent)
    flip_a_bit(store.directory / "step-00000020")
    with pytest.raises(OSError, match="is no whole checkpoint"):
        copy_checkpoint(store.directory / "step-00000020", other.directory)
    copy_checkpoint(store.directory / "step-00000030", other.directory)
    assert loaded(other)["cursor"] == 30
    other.close()


def test_a_copy_where_no_links_can_be_made_is_one_of_bytes(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(10, state(10.0))
    store.wait()
    monkeypatch.setattr("workers.checkpoint_files.os.link", refuse_links)
    other = CheckpointStore(tmp_path / "other")
    copy_checkpoint(store.directory / "step-00000010", other.directory)
    flip_a_bit(store.directory / "step-00000010")
    assert loaded(other)["cursor"] == 10
    other.close()


def refuse_links(source: str, target: str) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_a_torn_checkpoint_is_replaced_when_its_step_is_saved_again(store: CheckpointStore) -> None:
    store.save(10, state(10.0))
    store.wait()
    flip_a_bit(store.directory / "step-00000010")
    store.save(10, state(10.0))
    store.wait()
    assert loaded(store)["cursor"] == 10


def test_a_write_that_never_finished_is_not_a_checkpoint(store: CheckpointStore) -> None:
    store.save(10, state(10.0))
    store.wait()
    (store.directory / "step-00000020.a0-g1.partial").mkdir()
    assert loaded(store)["cursor"] == 10
    store.fence(2)
    assert sorted(p.name for p in store.directory.glob("step-*")) == ["step-00000010"]


def test_a_full_disk_fails_the_save_and_leaves_the_older_checkpoints(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(10, state(10.0))
    store.wait()
    write = checkpoint_files.HashingStream.write

    def full(self: Any, data: Any) -> int:
        if self.tell() > 200:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(checkpoint_files.HashingStream, "write", full)
    store.save(20, state(20.0))
    with pytest.raises(CheckpointWriteError, match=r"step 20 .*step-00000020.*No space left on device") as failure:
        store.wait()
    assert failure.value.code == "checkpoint_write_failed"
    monkeypatch.undo()
    assert loaded(store)["cursor"] == 10
    assert [p.name for p in store.directory.glob("step-*")] == ["step-00000010"]


def test_a_disk_that_lies_is_found_before_the_manifest(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    hash_file = checkpoint_files.hash_file
    monkeypatch.setattr(checkpoint_files, "hash_file", lambda path: (hash_file(path)[0], "0" * 32))
    store.save(20, state(20.0))
    with pytest.raises(CheckpointWriteError, match="reads back as"):
        store.wait()
    assert store.committed() == []


def test_the_only_good_checkpoint_is_not_pruned_for_a_newer_torn_one(tmp_path: Path, events: Events) -> None:
    store = CheckpointStore(tmp_path, keep_last=1, on_event=events.append)
    store.save(40, state(40.0))
    store.wait()
    flip_a_bit(tmp_path / "step-00000040")
    store.save(20, state(20.0))
    store.wait()
    assert loaded(store)["cursor"] == 20
    assert [info.step for info in store.committed()] == [20]
    assert events.of("deleted") == [40]
    store.close()


def test_a_failed_write_is_noticed_without_waiting(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def full(*args: Any) -> None:
        failed.wait()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CheckpointStore, "_write_rank", full)
    store.save(20, state(20.0))
    store.poll()
    failed.set()
    assert store._pending is not None
    store._pending.exception()
    with pytest.raises(CheckpointWriteError, match="No space left"):
        store.poll()
    store.poll()


def save_from_ranks(directory: Path, states: list[dict[str, Any]], step: int, events: Events, generation: int = 1) -> None:
    """Every rank in a thread of its own: they meet through the directory alone."""

    def save(rank: int) -> None:
        store = CheckpointStore(directory, keep_last=2, on_event=events.append)
        store.save(step, states[rank], Member(rank, len(states), generation))
        store.wait()
        store.close()

    with ThreadPoolExecutor(len(states)) as pool:
        list(pool.map(save, range(len(states))))


def test_ranks_write_their_own_files_and_share_one_manifest(tmp_path: Path, events: Events) -> None:
    save_from_ranks(tmp_path, [state(5.0), state(5.0)], 5, events)
    manifest = json.loads((tmp_path / "step-00000005" / MANIFEST).read_text())
    assert set(manifest["files"]) == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    assert manifest["world_size"] == 2
    assert {p.name for p in (tmp_path / "step-00000005").iterdir()} == {*manifest["files"], MANIFEST}
    assert events.of("committed") == [5]
    store = CheckpointStore(tmp_path)
    assert loaded(store)["cursor"] == 5
    store.close()


def test_one_rank_that_cannot_write_fails_them_all(tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data = checkpoint_files.FileSystemWriter.write_data

    def fails_on_rank_1(self: Any, plan: Any, planner: Any) -> Any:
        if plan.storage_data.prefix == "__1_":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_data(self, plan, planner)

    monkeypatch.setattr(checkpoint_files.FileSystemWriter, "write_data", fails_on_rank_1)
    with pytest.raises(CheckpointWriteError, match="No space left"):
        save_from_ranks(tmp_path, [state(5.0), state(5.0)], 5, events)
    assert events.of("committed") == []
    assert list(tmp_path.glob("step-*")) == []  # the disk is given back


def test_closing_ends_the_wait_for_a_rank_that_died(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(5, state(5.0), Member(0, 2))
    store.close()
    with pytest.raises(CheckpointWriteError, match="closed while rank 0 waited"):
        store.wait()
    assert store.committed() == []


def test_a_ghost_of_an_older_generation_commits_nothing(tmp_path: Path, events: Events) -> None:
    ghost = CheckpointStore(tmp_path, on_event=events.append, attempt=1)
    heir = CheckpointStore(tmp_path, on_event=events.append, attempt=1)
    ghost.fence(1)
    heir.fence(2)
    ghost.save(5, state(5.0), Member(0, 1, generation=1))
    ghost.wait()
    assert heir.committed() == []
    assert events.of("fenced") == [5]
    heir.save(5, state(5.0), Member(0, 1, generation=2))
    heir.wait()
    assert [info.step for info in heir.committed()] == [5]
    ghost.fence(1)
    assert heir._fence() == (1, 2)
    ghost.close()
    heir.close()


def test_a_newer_attempt_fences_any_generation_of_an_older_one(tmp_path: Path) -> None:
    old, new = CheckpointStore(tmp_path, attempt=1), CheckpointStore(tmp_path, attempt=2)
    old.fence(9)
    new.fence(1)
    assert old._fence() == (2, 1)
    old.close()
    new.close()


def test_of_two_runs_with_the_same_numbers_the_later_one_commits(tmp_path: Path, events: Events) -> None:
    ghost, heir = (CheckpointStore(tmp_path, on_event=events.append) for _ in range(2))
    ghost.fence(0)
    heir.fence(0)
    ghost.save(5, state(5.0))
    ghost.wait()
    assert (heir.committed(), events.of("fenced")) == ([], [5])
    heir.save(5, state(5.0))
    heir.wait()
    assert [info.step for info in heir.committed()] == [5]
    ghost.close()
    heir.close()


def test_the_stream_hashes_exactly_what_it_was_given(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb", buffering=0) as file:
        assert isinstance(file, io.FileIO)
        stream = checkpoint_files.HashingStream(file)
        stream.write(b"shards ")
        stream.write(memoryview(b"of a model"))
    assert stream.receipt() == checkpoint_files.hash_file(tmp_path / "file")

"""What was hashed is remembered for as long as a file is as it was, and never longer."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data import digests
from data.digests import Digests
from data.executors import SerialExecutor
from data.files import checksum
from data.prepare import prepare
from data.sources import list_files
from data.spec import DataSpec, SourceSpec, TokenizerSpec
from tests.data.conftest import data_spec, json_lines, texts, write

TOKENIZER = TokenizerSpec(vocab_size=300)
_opened: list[list[str]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str):
        for names in _opened:
            names.append(arguments[0])


sys.addaudithook(_hook)  # for good; it does nothing where nobody asks


@contextmanager
def opened() -> Iterator[list[str]]:
    """The paths of all files that this process opens."""
    _opened.append([])
    try:
        yield _opened[-1]
    finally:
        _opened.pop()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Files that were written just now are old from now on."""

    def call() -> None:
        monkeypatch.setattr(time, "time_ns", lambda: int((time.time() + 60) * 10**9))

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        write(tmp_path / "corpus" / f"{number}.jsonl", json_lines(texts(20, seed=number)))
    return tmp_path / "corpus"


def listed(folder: Path, memory: Path | None) -> dict[str, str]:
    with Digests(memory) as remembered:
        files = list_files(SourceSpec(path=str(folder / "*.jsonl")), "", remembered)
    return {Path(file.path).name: file.digest for file in files}


def read_again(folder: Path, memory: Path | None) -> list[str]:
    """The names of the files that are opened for another listing, which gives what one without a memory gives."""
    with opened() as paths:
        found = listed(folder, memory)
    assert found == listed(folder, None)
    return sorted(Path(path).name for path in paths if Path(path).parent == folder)


def test_a_file_that_is_as_it_was_is_not_opened_again(folder: Path, tmp_path: Path, later: Callable[[], None]) -> None:
    later()
    memory = tmp_path / "memory"
    assert read_again(folder, memory) == ["0.jsonl", "1.jsonl", "2.jsonl", "3.jsonl"]
    assert read_again(folder, memory) == []
    write(folder / "4.jsonl", b"{}\n")
    write(folder / "1.jsonl", json_lines(texts(3, seed=9)))
    (folder / "2.jsonl").unlink()
    assert read_again(folder, memory) == ["1.jsonl", "4.jsonl"]
    assert read_again(folder, memory) == []


def test_other_content_of_the_same_size_and_time_of_writing_is_seen(
    folder: Path, tmp_path: Path, later: Callable[[], None]
) -> None:
    later()
    memory, path = tmp_path / "memory", folder / "0.jsonl"
    listed(folder, memory)
    state, content = path.stat(), path.read_bytes()
    path.write_bytes(content.replace(b"river", b"RIVER"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    assert read_again(folder, memory) == ["0.jsonl"]
    other = write(tmp_path / "other", content)
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    Path(other).replace(path)
    assert read_again(folder, memory) == ["0.jsonl"]


def test_a_file_that_was_written_a_moment_before_it_was_hashed_is_hashed_again(
    folder: Path, tmp_path: Path, later: Callable[[], None]
) -> None:
    memory = tmp_path / "memory"
    assert len(read_again(folder, memory)) == 4
    assert len(read_again(folder, memory)) == 4  # within the same step of the clock each could have changed since
    later()
    assert len(read_again(folder, memory)) == 4
    assert read_again(folder, memory) == []


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(
    folder: Path, tmp_path: Path, later: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    later()

    def hashed(path: Path, pulse: Callable[[], None]) -> str:
        found = checksum(path, pulse)
        if path.name == "3.jsonl":
            path.write_bytes(b"{}\n")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(digests, "checksum", hashed)
        listed(folder, tmp_path / "memory")
    assert read_again(folder, tmp_path / "memory") == ["3.jsonl"]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[:-20],
    "one digit is another": lambda content: content.replace(b"0.jsonl", b"1.jsonl", 1),
    "not text": lambda content: b"\xff\xfe" + content,
    "a hash of nothing": lambda content: content.partition(b"\n")[0],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_memory_is_none(
    damage: Callable[[bytes], bytes], folder: Path, tmp_path: Path, later: Callable[[], None]
) -> None:
    later()
    memory = tmp_path / "memory"
    listed(folder, memory)
    [file] = memory.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert len(read_again(folder, memory)) == 4
    assert read_again(folder, memory) == []


def test_two_at_once_forget_nothing_and_a_stop_keeps_what_was_hashed(
    folder: Path, tmp_path: Path, later: Callable[[], None]
) -> None:
    later()
    memory = tmp_path / "memory"
    with Digests(memory) as one, Digests(memory) as other:
        list_files(SourceSpec(path=str(folder / "0.jsonl")), "", one)
        list_files(SourceSpec(path=str(folder / "1.jsonl")), "", other)

    class Stopped(Exception):
        pass

    def pulse() -> None:
        if sum(name.endswith(".jsonl") for name in names) > 1:
            raise Stopped

    with pytest.raises(Stopped), opened() as names, Digests(memory, pulse) as stopped:
        list_files(SourceSpec(path=str(folder / "[23].jsonl")), "", stopped)
    assert read_again(folder, memory) == ["3.jsonl"]


def test_what_was_hashed_is_written_down_on_the_way(
    folder: Path, tmp_path: Path, later: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    later()
    memory = tmp_path / "memory"
    monkeypatch.setattr(digests, "_SAVE_BYTES", 1)
    killed = Digests(memory)  # whose block never ends
    list_files(SourceSpec(path=str(folder / "*.jsonl")), "", killed)
    assert read_again(folder, memory) == []


def test_a_rerun_opens_no_file_that_did_not_change(folder: Path, tmp_path: Path, later: Callable[[], None]) -> None:
    """Sources, test sets and what a classifier learns from."""
    later()
    write(tmp_path / "sets" / "set.jsonl", json_lines([" ".join(f"w{i}x{j}" for j in range(20)) for i in range(5)]))
    write(tmp_path / "poor" / "0.jsonl", json_lines([f"!!! {i} $$$ buy buy" for i in range(60)]))
    write(tmp_path / "good" / "0.jsonl", json_lines(texts(60, seed=8)))
    training = {name: [{"path": str(tmp_path / name / "*.jsonl")}] for name in ("good", "poor")} | {"min_examples": 20}
    spec = data_spec(
        str(folder / "*.jsonl"),
        decontaminate={"test_sets": [{"path": str(tmp_path / "sets" / "*.jsonl")}]},
        stages=["normalise", {"stage": "grade", "keep": None, "training": training}],
    )
    inputs = {folder, *(tmp_path / name for name in ("sets", "poor", "good"))}

    def read(spec: DataSpec) -> list[str]:
        with opened() as paths:
            prepare(spec, TOKENIZER, tmp_path / "prepared", SerialExecutor(), lambda progress: None)
        return [f"{Path(path).parent.name}/{Path(path).name}" for path in paths if Path(path).parent in inputs]

    assert set(read(spec)) >= {"corpus/0.jsonl", "sets/set.jsonl", "poor/0.jsonl", "good/0.jsonl"}
    assert read(spec) == []
    # Test sets are read anew for another data set; nothing else is.
    assert set(read(spec.model_copy(update={"seed": 5}))) == {"sets/set.jsonl"}

"""Logs by process: line by line, stamped, readable while they are written."""

import sys
from datetime import datetime
from pathlib import Path

import pytest

from workers.logs import log_path, logged_to, tail


def test_each_process_has_a_file_of_its_own(tmp_path: Path) -> None:
    assert log_path(tmp_path, 2, 1) == tmp_path / "logs" / "attempt-2" / "rank-1.log"
    assert log_path(tmp_path, 2, -1) == tmp_path / "logs" / "attempt-2" / "driver.log"


def test_what_is_printed_goes_to_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "logs" / "rank-0.log"
    with logged_to(path):
        print("out")
        print("err", file=sys.stderr)
        print("two\nlines")
        print("half", end="")
        print(" a line")
    print("after")
    stamps, words = zip(*(line.split(" ", 1) for line in tail(path)), strict=True)
    assert words == ("out", "err", "two", "lines", "half a line")
    assert all(datetime.fromisoformat(stamp).utcoffset() is not None for stamp in stamps)
    captured = capsys.readouterr()
    assert captured.out == "out\ntwo\nlines\nhalf a line\nafter\n"
    assert captured.err == "err\n"


def test_a_log_is_only_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.log"
    for word in ("first", "second"):
        with logged_to(path):
            print(word)
    assert [line.split(" ", 1)[1] for line in tail(path)] == ["first", "second"]


def test_the_tail_is_the_end(tmp_path: Path) -> None:
    path = tmp_path / "long.log"
    path.write_text("".join(f"line {i}\n" for i in range(20_000)))
    assert tail(path, 2) == ["line 19998", "line 19999"]
    assert tail(tmp_path / "missing") == []


def test_a_full_disk_does_not_stop_what_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with logged_to(tmp_path / "rank-0.log"):
        monkeypatch.setattr("workers.logs.os.write", full)
        print("still here")
        monkeypatch.undo()

"""Logs by rank, resumed at the exact byte."""

from pathlib import Path

import pytest

from api.logs import CHUNK_BYTES, InvalidPosition, Position, read
from tests.api.conftest import Manta


def write(directory: Path, attempt: int, name: str, text: str) -> None:
    path = directory / f"attempt-{attempt}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


def texts(directory: Path, position: Position | None = None, **options: object) -> list[str]:
    given = {"rank": None, "attempt": None, "final": False, "limit": 1000, **options}
    return [line.text for _, line in read(directory, position or Position(), **given)]  # type: ignore[arg-type]


def test_ranks_of_an_attempt_are_merged_by_time_and_attempts_follow_each_other(tmp_path: Path) -> None:
    write(tmp_path, 1, "rank-0.log", "2026-01-01T00:00:01 a\n2026-01-01T00:00:04 d\n")
    write(tmp_path, 1, "rank-1.log", "2026-01-01T00:00:02 b\n")
    write(tmp_path, 1, "driver.log", "2026-01-01T00:00:03 c\n")
    write(tmp_path, 2, "rank-0.log", "2026-01-01T00:00:00 e\n")
    write(tmp_path, 10, "rank-0.log", "f\n")
    assert [text[-1] for text in texts(tmp_path)] == list("abcdef")


def test_a_traceback_stays_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, 1, "rank-0.log", "2026-01-01T00:00:01 failed\nTraceback\n  at x\n2026-01-01T00:00:03 z\n")
    write(tmp_path, 1, "rank-1.log", "2026-01-01T00:00:02 other\n")
    assert [text.split()[-1] for text in texts(tmp_path)] == ["failed", "Traceback", "x", "other", "z"]


def test_one_rank_and_one_attempt_can_be_asked_for(tmp_path: Path) -> None:
    for attempt in (1, 2):
        write(tmp_path, attempt, "driver.log", f"driver {attempt}\n")
        write(tmp_path, attempt, "rank-0.log", f"zero {attempt}\n")
        write(tmp_path, attempt, "notes.txt", "not a log\n")
    assert texts(tmp_path, rank=0) == ["zero 1", "zero 2"]
    assert texts(tmp_path, rank=-1, attempt=2) == ["driver 2"]
    assert texts(tmp_path, rank=5) == []
    assert texts(tmp_path / "none yet") == []


def test_half_a_line_is_held_back_until_it_is_whole_or_the_job_has_ended(tmp_path: Path) -> None:
    write(tmp_path, 1, "rank-0.log", "one\ntw")
    assert texts(tmp_path) == ["one"]
    assert texts(tmp_path, final=True) == ["one", "tw"]
    write(tmp_path, 1, "rank-0.log", "o\n")
    assert texts(tmp_path) == ["one", "two"]


def test_the_torn_last_line_of_a_killed_attempt_comes_once_there_is_a_newer_one(tmp_path: Path) -> None:
    write(tmp_path, 1, "rank-0.log", "one\nkill")
    assert texts(tmp_path) == ["one"]
    write(tmp_path, 2, "rank-0.log", "two\nthr")
    assert texts(tmp_path) == ["one", "kill", "two"]
    assert texts(tmp_path, Position(1, {0: 4})) == ["kill", "two"]


def test_logs_that_are_deleted_meanwhile_are_at_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1, "rank-0.log", "one\n")
    monkeypatch.setattr("api.logs._files", lambda directory, rank: [(0, directory / "rank-0.log"), (1, directory / "gone.log")])
    assert texts(tmp_path) == ["one"]
    monkeypatch.undo()
    monkeypatch.setattr("api.logs._attempts", lambda directory: [1, 2])
    assert texts(tmp_path) == ["one"]


def test_any_interruption_resumes_without_loss_or_repetition(tmp_path: Path) -> None:
    for attempt in (1, 2, 3):
        for rank in (0, 1):
            for n in range(5):
                write(tmp_path, attempt, f"rank-{rank}.log", f"2026-01-01T00:00:0{n} {attempt}-{rank}-{n} ü\n")
    whole = texts(tmp_path)
    assert len(whole) == 30
    for stop in range(30):
        lines = read(tmp_path, Position(), rank=None, attempt=None, final=False, limit=stop + 1)
        position = Position.parse(str(lines[-1][0]))
        assert [line.text for _, line in lines] + texts(tmp_path, position) == whole


def test_lines_without_end_and_bytes_that_are_no_text_pass(tmp_path: Path) -> None:
    path = tmp_path / "attempt-1" / "rank-0.log"
    path.parent.mkdir()
    path.write_bytes(b"x" * (CHUNK_BYTES + 10) + b"\n\xff\xfe\x00\n")
    assert [len(text) for text in texts(tmp_path)] == [CHUNK_BYTES, 10, 3]


@pytest.mark.parametrize("text", ["", "x", "1;0", "1;0:", "1;0:1;", "-1", "1;0:1 ", "1\n", "9" * 40])
def test_a_foreign_position_is_refused(text: str) -> None:
    with pytest.raises(InvalidPosition):
        Position.parse(text)


def test_logs_are_followed_until_the_job_ends(manta: Manta) -> None:
    job = manta.job()
    logs = manta.services.jobs.directory(job.id) / "logs"
    write(logs, 1, "rank-0.log", "first\n")
    lines = manta.client.stream_logs(job.id)
    assert next(lines).text == "first"
    write(logs, 2, "rank-1.log", "second\nthird without end")
    second = next(lines)
    assert (second.attempt, second.rank, second.text) == (2, 1, "second")
    manta.client.cancel(job.id)
    assert [line.text for line in lines] == ["third without end"]


def test_a_line_with_separators_of_other_alphabets_arrives_whole(shared: Manta) -> None:
    job = shared.job()
    line = "a\u2028b\u2029c\x85d"
    write(shared.services.jobs.directory(job.id) / "logs", 1, "rank-0.log", f"{line}\nnext\n")
    assert [each.text for each in shared.client.stream_logs(job.id, follow=False)] == [line, "next"]


def test_logs_without_follow_end_at_the_last_line(shared: Manta) -> None:
    job = shared.job()
    logs = shared.services.jobs.directory(job.id) / "logs"
    write(logs, 1, "driver.log", "d\n")
    write(logs, 1, "rank-0.log", "r\n")
    assert [line.text for line in shared.client.stream_logs(job.id, follow=False)] == ["d", "r"]
    assert [line.text for line in shared.client.stream_logs(job.id, rank=-1, follow=False)] == ["d"]
    assert [line.text for line in shared.client.stream_logs(job.id, follow=False, position="1;-1:2")] == ["r"]

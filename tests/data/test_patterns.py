"""What a search has found is kept for the workers that start later; whatever happens to the file, all have the same."""

import logging
from fractions import Fraction
from pathlib import Path

import pytest

from data import apportion
from data.apportion import batch_counts
from data.curriculum import BatchSizes, Curriculum
from data.patterns import pattern_name
from data.steps import StepOrder
from tests.data.test_order import manifest

PARTS = [Fraction(part, 20) for part in (9, 6, 3, 2)]
LINES = [("zh", "web"), ("en", "web"), ("zh", "code"), ("en", "code")]


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The periods of the tables that were searched."""
    made: list[int] = []
    found = apportion.search

    def counted(table: apportion.Table) -> apportion.Ints | None:
        made.append(table.period)
        return found(table)

    monkeypatch.setattr(apportion, "search", counted)
    return made


def another_process(patterns: Path | None, size: int = 7) -> list[list[int]]:
    apportion._batch_counts.cache_clear()
    counts: list[list[int]] = batch_counts(PARTS, size, LINES, patterns).tolist()
    return counts


def test_what_one_process_found_the_others_read(tmp_path: Path, searches: list[int]) -> None:
    first = another_process(tmp_path / "patterns")
    assert another_process(tmp_path / "patterns") == first == another_process(None)
    assert searches == [20, 20]
    another_process(tmp_path / "patterns", size=9)
    assert len(searches) == 3
    assert len(list((tmp_path / "patterns").iterdir())) == 2


def test_another_table_has_another_name() -> None:
    names = {
        pattern_name(PARTS, 7, LINES),
        pattern_name(PARTS, 9, LINES),
        pattern_name(PARTS[::-1], 7, LINES),
        pattern_name(PARTS, 7, [*LINES[:3], ("de", "code")]),
    }
    assert len(names) == 4


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_not_believed_and_written_again(
    damage: str, tmp_path: Path, searches: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    first = another_process(tmp_path)
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:-1], "changed": whole[:-1] + bytes([1 - whole[-1]]), "empty": b""}[damage])
    assert another_process(tmp_path) == first
    assert "is damaged" in caplog.text
    assert file.read_bytes() == whole
    assert len(searches) == 2


def test_where_nothing_can_be_written_every_process_searches(
    tmp_path: Path, searches: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.INFO):
        assert another_process(tmp_path / "file") == another_process(tmp_path / "file") == another_process(None)
    assert len(searches) == 3
    assert "not kept for other workers" in caplog.text


def test_the_order_of_a_run_keeps_the_pattern_of_each_segment(tmp_path: Path, searches: list[int]) -> None:
    made = manifest([40, 60], [0.3, 0.7], shares=(0.5, 0.5))
    course = Curriculum([4, 8], [0.5, 0.5], 1, BatchSizes(3, 3, 0), 20)
    orders = []
    for _ in range(2):
        apportion._batch_counts.cache_clear()
        orders.append(StepOrder(made, 1, course, tmp_path).micro_batches(3))
    assert orders[0] == orders[1]
    assert len(searches) == len(list(tmp_path.iterdir())) == 2

"""Dropped documents are kept aside where asked: each with its reason, the same files whoever wrote them, no personal data."""

import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data import aside, dropped
from data.aside import keep_aside
from data.corpus import Documents
from data.dedup.clusters import Duplicates
from data.documents import Document
from data.dropped import FOLDER, SCHEMA, dropped_writer
from data.executors import Executor, SerialExecutor
from data.prepare import Prepared, prepare
from data.spec import DataSpec, SourceSpec, TokenizerSpec
from data.stages.base import Drop
from tests.data.conftest import Preparation, data_spec, json_lines, texts, write
from tests.data.test_prepare import Backwards, StopAfter, files


def read(prepared: Prepared) -> list[dict[str, Any]]:
    paths = sorted((prepared.path / FOLDER).glob("*.parquet"))
    assert all(pq.read_schema(path).equals(SCHEMA) for path in paths)
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    """English: 60 documents, of them 3 again in another file, 5 too short, one broken line, 2 with an email, 2 of a test set.
    Chinese: 20 documents and one again."""
    long = texts(60, words=60)
    exam = texts(2, seed=8, words=60)
    emails = [f"Write to {name}@example.org. {text}" for name, text in zip("ab", texts(2, seed=9), strict=True)]
    first = json_lines([*long[:40], *["short"] * 5, *emails, *exam]) + b"{\n"
    write(tmp_path / "en" / "0.jsonl", first)
    write(tmp_path / "en" / "1.jsonl", json_lines([long[2].upper(), *long[40:], long[3], long[2]]))
    chinese = [f"第{i}回 {text}" for i, text in enumerate(texts(20, seed=5))]
    write(tmp_path / "zh.jsonl", json_lines([*chinese, chinese[4]]))
    return data_spec(
        SourceSpec(path=str(tmp_path / "en" / "*.jsonl")),
        SourceSpec(path=str(tmp_path / "zh.jsonl"), language="zh", domain="stories"),
        stages=["normalise", {"stage": "length", "min_characters": 8}, {"stage": "personal_data", "email": "drop"}],
        decontaminate={"held_out": False, "test_sets": [{"path": write(tmp_path / "exam.jsonl", json_lines(exam))}]},
        on_bad_document="drop",
        shard_documents=1,
        held_out_fraction=0.05,
        keep_dropped=True,
    )


def prepared_in(root: Path, spec: DataSpec, executor: Executor) -> Prepared:
    return prepare(spec, TokenizerSpec(vocab_size=300), root, executor, lambda progress: None)


def test_every_drop_that_is_counted_is_kept(spec: DataSpec, preparation: Preparation) -> None:
    prepared = preparation(spec)
    rows = read(prepared)
    assert Counter(row["reason"] for row in rows) == prepared.manifest.drops
    assert prepared.manifest.drops == {
        "broken_json": 1,
        "duplicate": 4,
        "email": 2,
        "test_set_overlap": 2,
        "too_short": 5,
    }
    assert Counter(row["stage"] for row in rows) == {
        "sources": 1,
        "length": 5,
        "personal_data": 2,
        "deduplicate": 4,
        "decontaminate": 2,
    }


def test_a_row_says_where_it_was_what_took_it_and_for_what(spec: DataSpec, preparation: Preparation) -> None:
    rows = read(preparation(spec))
    by_reason: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_reason.setdefault(row["reason"], []).append(row)
    short = by_reason["too_short"][0]
    assert (short["text"], short["language"], short["domain"], short["detail"]) == ("short", "en", "web", "5")
    assert short["id"].endswith("en/0.jsonl:41")
    assert short["other_id"] is None
    duplicates = {row["id"].rpartition("/")[2]: row["other_id"].rpartition("/")[2] for row in by_reason["duplicate"]}
    assert duplicates == {
        "1.jsonl:1": "0.jsonl:3",
        "1.jsonl:22": "0.jsonl:4",
        "1.jsonl:23": "0.jsonl:3",
        "zh.jsonl:21": "zh.jsonl:5",
    }
    chinese = next(row for row in by_reason["duplicate"] if row["language"] == "zh")
    assert chinese["domain"] == "stories"
    assert chinese["text"].startswith("第4回")
    assert [row["other_id"].rpartition("/")[2] for row in by_reason["test_set_overlap"]] == ["exam.jsonl:1", "exam.jsonl:2"]
    assert by_reason["test_set_overlap"][0]["detail"] == "1.00 of exam"
    assert "0.jsonl:50: not JSON" in by_reason["broken_json"][0]["detail"]


def test_what_was_dropped_for_its_personal_data_is_confidential(
    spec: DataSpec, tmp_path: Path, preparation: Preparation
) -> None:
    prepared = preparation(spec)
    marked = [row for row in read(prepared) if row["confidential"]]
    assert [(row["reason"], row["text"], row["url"]) for row in marked] == [("email", None, None)] * 2
    assert all(row["id"] for row in marked)
    assert not any(b"@example.org" in path.read_bytes() for path in prepared.path.rglob("*") if path.is_file())
    path = tmp_path / "one.parquet"
    with dropped_writer(path) as take:
        take(
            "personal_data", Drop("email", confidential=True), Document("me@x.org", "a:1", "en", "web", "http://x.org/me@x.org")
        )
    [row] = pq.read_table(path).to_pylist()
    assert (row["text"], row["url"], row["id"]) == (None, None, "a:1")


def test_nothing_is_kept_where_it_is_not_asked_for(spec: DataSpec, preparation: Preparation) -> None:
    asked = preparation(spec)
    prepared = preparation(spec.model_copy(update={"keep_dropped": False}))
    assert not (prepared.path / FOLDER).exists()
    assert prepared.manifest.drops == asked.manifest.drops
    assert [shard.checksum for shard in prepared.manifest.shards] == [shard.checksum for shard in asked.manifest.shards]


@pytest.mark.parametrize(("keep", "text"), [("first", "longer"), ("longest", "shorter")])
def test_of_near_duplicates_the_one_that_stays_is_named(keep: str, text: str, tmp_path: Path, preparation: Preparation) -> None:
    base = " ".join(f"{word}{i}" for i, word in enumerate(texts(1, words=60)[0].split() * 4))
    pair = [base + " shorter", base + " and somewhat longer", *texts(20)]
    path = write(tmp_path / "a.jsonl", json_lines(pair))
    rows = read(preparation(data_spec(path, deduplicate={"method": "minhash", "keep": keep}, keep_dropped=True)))
    [row] = rows
    assert row["reason"] == "near_duplicate"
    assert row["text"].endswith(text)
    assert row["other_id"] == f"{path}:{1 if keep == 'first' else 2}"


def test_many_dropped_documents_are_written_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropped, "_ROOM_BYTES", 2000)
    with dropped_writer(tmp_path / "a.parquet") as take:
        for number in range(50):
            take("length", Drop("too_short", str(number)), Document("x" * 100, f"a:{number}", "en", "web"))
    parquet = pq.ParquetFile(tmp_path / "a.parquet")
    assert parquet.num_row_groups > 5
    assert parquet.read()["id"].to_pylist() == [f"a:{number}" for number in range(50)]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> None:
        with dropped_writer(tmp_path / "a.parquet") as take:
            take("length", Drop("too_short"), Document("x" * (5 << 20), "a:1", "en", "web"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    with dropped_writer(tmp_path / "b.parquet"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_where_files_cannot_be_linked_they_are_copied(spec: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked = prepared_in(tmp_path / "linked", spec, SerialExecutor())

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("data.dropped.os.link", refused)
    assert files(prepared_in(tmp_path / "copied", spec, SerialExecutor()).path) == files(linked.path)


def test_the_order_of_work_does_not_matter(spec: DataSpec, tmp_path: Path) -> None:
    one, other = (prepared_in(tmp_path / name, spec, e) for name, e in (("a", SerialExecutor()), ("b", Backwards())))
    assert files(one.path) == files(other.path)


# One task reads the test set, three clean, one gathers, one merges, three scan, two and one keep aside.
@pytest.mark.parametrize("tasks", [3, 9, 10, 11])
def test_a_stopped_preparation_is_finished_by_the_next(tasks: int, spec: DataSpec, tmp_path: Path) -> None:
    whole = prepared_in(tmp_path / "whole", spec, SerialExecutor())
    with pytest.raises(KeyboardInterrupt):
        prepared_in(tmp_path / "stopped", spec, StopAfter(tasks))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped").glob(f"*.partial/{FOLDER}/*")}
    assert len(before) == {3: 0, 9: 1, 10: 2, 11: 3}[tasks]
    with pytest.raises(KeyboardInterrupt):
        prepared_in(tmp_path / "stopped", spec, StopAfter(11))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert files(prepared_in(tmp_path / "stopped", spec, SerialExecutor()).path) == files(whole.path)


class Told:
    """Does nothing; of how many documents the tasks of each round were told."""

    def __init__(self) -> None:
        self.documents: list[int] = []

    def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
        self.documents.append(sum(len(task.rows) for task in shards))
        return iter(())


def test_what_the_driver_holds_of_the_dropped_does_not_grow_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "_ROUND_DOCUMENTS", 4096)
    peaks = []
    for count in (20_000, 100_000):
        nothing, number_N = np.zeros(count, np.int64), np.arange(count)
        parts = [tmp_path / f"{part}.arrow" for part in range(count // 1000)]
        columns = [number_N.astype(np.uint64), number_N // 1000, number_N % 1000, nothing, nothing]
        documents = Documents._of(parts, [columns], tmp_path / f"{count}")
        duplicates = Duplicates(nothing, nothing, nothing, number_N == 0)
        told = Told()
        tracemalloc.start()
        keep_aside([duplicates.aside(documents)], ["web"] * len(parts), tmp_path, told, lambda: None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sum(told.documents) == count - 1
        assert max(told.documents) < 4096 + 1000
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_gives_the_same_bytes(spec: DataSpec, tmp_path: Path) -> None:
    from data.ray_executor import RayDataExecutor

    one, other = (prepared_in(tmp_path / name, spec, e) for name, e in (("a", SerialExecutor()), ("b", RayDataExecutor())))
    assert len(read(other)) == 14
    assert files(one.path) == files(other.path)

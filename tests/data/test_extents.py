"""A large file is read a piece at a time, in a task each: every document once, whatever the borders."""

import io
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import corpus
from data.dataset import PackedDataset
from data.documents import Bad, Document
from data.executors import SerialExecutor
from data.prepare import Prepared, Progress, prepare
from data.sources import extents, list_files, listing, read_file, streams
from data.spec import DataSpec, SourceSpec, TokenizerSpec
from tests.data.conftest import data_spec, json_lines, texts, write
from tests.data.killed import files
from tests.data.test_sources import Bucket, Ranges

SIZES = (1, 2, 7, 60, 61, 100, 333, 1000, 4096)
MOST = 400


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Into extents of so many bytes, each with a task of its own."""

    def call(size: int) -> None:
        monkeypatch.setattr(listing, "_EXTENT_BYTES", size)
        monkeypatch.setattr(corpus, "_TASK_BYTES", size)

    return call


def read(path: str, most: int = MOST) -> list[list[Document | Bad]]:
    """By extent."""
    source = SourceSpec(path=path)
    [file] = list_files(source, "")
    return [list(read_file(each, source, most)) for each in extents(file)]


def joined(found: Sequence[Sequence[Document | Bad]]) -> list[Document | Bad]:
    return [item for of_extent in found for item in of_extent]


def said(item: Document | Bad) -> str:
    return item.text if isinstance(item, Document) else item.reason


def _lines() -> bytes:
    draw = random.Random(5)
    kinds: list[Callable[[int], bytes]] = [
        lambda i: json_lines(["é水" * draw.randrange(30) + str(i)]),
        lambda i: b"\n",
        lambda i: b"{\n",
        lambda i: json_lines(["x" * 900 + str(i)]),
    ]
    made = [draw.choices(kinds, [8, 2, 1, 1])[0](i) for i in range(60)]
    return b"".join(made) + json_lines(["the last one"]).rstrip(b"\n")


@pytest.mark.parametrize("place", ["local", "bucket"])
def test_lines_are_read_once_whatever_the_borders_and_their_names_are_their_places(
    place: str, tmp_path: Path, cut: Callable[[int], None]
) -> None:
    content = _lines()
    path = write(tmp_path / "a.jsonl", content)
    if place == "bucket":
        fsspec.register_implementation("bucket", Bucket, clobber=True)
        fsspec.filesystem("bucket").pipe("/extents/a.jsonl", content)
        path = "bucket:///extents/a.jsonl"
    whole = joined(read(path))
    assert {"oversized", "broken_json"} < {said(item) for item in whole}
    for size in SIZES if place == "local" else SIZES[-3:]:
        cut(size)
        found = read(path)
        assert len(found) == -(-len(content) // size)
        assert [said(item) for item in joined(found)] == [said(item) for item in whole]
        for number, of_extent in enumerate(found):
            for item in of_extent:
                where = item.id if isinstance(item, Document) else item.detail.partition(": ")[0]
                at = int(where.removeprefix(f"{path}:byte "))
                assert size * number <= at < size * (number + 1)
                if isinstance(item, Document):
                    assert json.loads(content[at:].partition(b"\n")[0])["text"] == item.text


def test_little_beyond_an_extent_is_asked_of_object_storage(
    cut: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json_lines(["x" * 100] * 5_000)
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    fsspec.filesystem("bucket").pipe("/asked/a.jsonl", content)
    monkeypatch.setattr(streams, "_AHEAD_BYTES", 2000)
    monkeypatch.setattr(streams, "_BLOCK_BYTES", 1000)
    cut(20_000)
    asked: list[int] = []
    whole = Bucket.cat_file
    fetch = Ranges._fetch_range

    def fetched(self: Ranges, start: int, end: int) -> bytes:
        asked.append(end - start)
        return fetch(self, start, end)

    def cat(self: Bucket, path: str, start: int, end: int) -> bytes:
        asked.append(end - start)
        found: bytes = whole(self, path, start, end)
        return found

    monkeypatch.setattr(Ranges, "_fetch_range", fetched)
    monkeypatch.setattr(Bucket, "cat_file", cat)
    assert len(joined(read("bucket:///asked/a.jsonl"))) == 5_000
    assert len(content) <= sum(asked) < 1.2 * len(content)


def test_pieces_of_a_text_are_its_bytes_whatever_the_borders(tmp_path: Path, cut: Callable[[int], None]) -> None:
    text = "\n".join(f"{i} " + "some words, 一些词 " * (i % 17) + ("\n" if i % 5 == 0 else "") for i in range(4000))
    path = write(tmp_path / "book.txt", text.encode())
    for size in (4097, 30_000, 66_000, 10**6):
        cut(size)
        pieces = joined(read(path, 1 << 20))
        assert all(isinstance(piece, Document) for piece in pieces)
        assert "".join(said(piece) for piece in pieces) == text
        for piece in pieces if size < 10**6 else []:
            assert isinstance(piece, Document)
            assert text.encode()[int(piece.id.rpartition(" ")[2]) :].startswith(piece.text.encode())


def _parquet(rows: int = 97, group: int = 10, **settings: Any) -> bytes:
    table = pa.table(
        {
            "nested": [{"text": "not this", "more": [1, 2]}] * rows,
            "text": [f"row {i + 1} " + "水" * (i % 30) for i in range(rows - 1)] + ["x" * 3000],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=group, **settings)
    return sink.getvalue()


@pytest.mark.parametrize("settings", [{}, {"use_dictionary": False}, {"group": 1}, {"group": 97}], ids=str)
def test_row_groups_are_read_once_and_rows_keep_their_numbers(
    settings: dict[str, Any], tmp_path: Path, cut: Callable[[int], None]
) -> None:
    path = write(tmp_path / "a.parquet", _parquet(**settings))
    whole = joined(read(path))
    assert [item.id for item in whole if isinstance(item, Document)] == [f"{path}:row {i}" for i in range(1, 97)]
    assert isinstance(whole[-1], Bad)
    assert whole[-1].detail.startswith(f"{path}:row 97: a document larger")
    for size in (100, 333, 1000, 4096):
        cut(size)
        assert joined(read(path)) == whole


def test_large_documents_of_parquet_are_read_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["short"] * 600 + [str(i) * 3000 for i in range(1000, 1600)]}), sink, row_group_size=600)
    path = write(tmp_path / "a.parquet", sink.getvalue())
    monkeypatch.setattr("data.sources.parquet._BATCH_BYTES", 200_000)
    batches: list[int] = []

    class Recorded(pq.ParquetFile):  # type: ignore[misc]
        def iter_batches(self, **settings: Any) -> Iterator[pa.RecordBatch]:
            for batch in super().iter_batches(**settings):
                batches.append(len(batch))
                yield batch

    monkeypatch.setattr(pq, "ParquetFile", Recorded)
    assert len(joined(read(path, 1 << 20))) == 1200
    assert max(batches) == 256
    assert 600 / 20 <= sum(count <= 20 for count in batches) <= 600 / 8


BROKEN_AS_A_WHOLE: dict[str, tuple[str, bytes, str]] = {
    "lines in UTF-16": ("a.jsonl", json_lines(texts(20)).decode().encode("utf-16"), "utf16"),
    "text in UTF-16": ("a.txt", ("some words\n" * 9000).encode("utf-16"), "utf16"),
    "no such column": ("a.parquet", _parquet().replace(b"text", b"body"), "no_text_field"),
    "Parquet cut short": ("a.parquet", _parquet()[:-9], "broken_parquet"),
}


@pytest.mark.parametrize(("name", "content", "reason"), BROKEN_AS_A_WHOLE.values(), ids=BROKEN_AS_A_WHOLE)
def test_what_is_wrong_with_a_file_is_said_once(
    name: str, content: bytes, reason: str, tmp_path: Path, cut: Callable[[int], None]
) -> None:
    cut(1000)
    found = read(write(tmp_path / name, content))
    assert len(found) > 3
    assert [said(item) for item in joined(found)] == [reason]


class Counted(io.BytesIO):
    taken = 0

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        Counted.taken += len(line)
        return line


def test_an_endless_line_is_not_read_by_each_task(
    tmp_path: Path, cut: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json_lines(["good"]) + b"x" * 200_000
    path = write(tmp_path / "a.jsonl", content)
    cut(2000)

    def opened(path: str) -> BinaryIO:
        return Counted(Path(path).read_bytes())

    monkeypatch.setattr(streams, "open_raw", opened)
    monkeypatch.setattr(streams, "_BLOCK_BYTES", 100)
    assert [said(item) for item in joined(read(path))] == ["good", "oversized"]
    assert Counted.taken < 2 * len(content)


def test_what_cannot_be_entered_anywhere_and_small_files_stay_whole(tmp_path: Path, cut: Callable[[int], None]) -> None:
    cut(10_000)
    long = json_lines(texts(100))
    for name in ("a.jsonl.gz", "a.txt.gz", "a.py", "a.html", "a.warc"):
        [file] = list_files(SourceSpec(path=write(tmp_path / name, long)), "")
        assert extents(file) == [file]
    [file] = list_files(SourceSpec(path=write(tmp_path / "a.jsonl", long[:10_000])), "")
    assert extents(file) == [file]


class Backwards:
    """Tasks in no order of theirs."""

    def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
        return map(fn, reversed(shards))


def prepared_in(root: Path, spec: DataSpec, executor: Any, steps: list[Progress] | None = None) -> Prepared:
    on_progress = (steps if steps is not None else []).append
    return prepare(spec, TokenizerSpec(vocab_size=300), root, executor, on_progress)


def test_a_preparation_of_large_files_is_that_of_their_documents(tmp_path: Path, cut: Callable[[int], None]) -> None:
    write(tmp_path / "lines" / "large.jsonl", json_lines(texts(300)))
    write(tmp_path / "lines" / "small.jsonl", json_lines(texts(9, seed=1)))
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts(200, seed=2)}), sink, row_group_size=20)
    write(tmp_path / "rows.parquet", sink.getvalue())
    rows = SourceSpec(path=str(tmp_path / "rows.parquet"), domain="rows")
    spec = data_spec(str(tmp_path / "lines" / "*.jsonl"), rows, held_out_fraction=0.1, deduplicate="minhash", documents=True)
    whole = prepared_in(tmp_path / "whole", spec, SerialExecutor())

    cut(8000)
    steps: list[Progress] = []
    parted = prepared_in(tmp_path / "parted", spec, SerialExecutor(), steps)
    assert len(list((tmp_path / "parted").glob(".cleaned/*.arrow"))) > 6
    assert parted.manifest.shards == whole.manifest.shards
    assert files(prepared_in(tmp_path / "backwards", spec, Backwards()).path) == files(parted.path)

    inputs = PackedDataset.open(parted.path).inputs
    assert inputs == PackedDataset.open(whole.path).inputs
    assert [file.documents for file in inputs.files] == [300, 9, 200]
    assert parted.manifest.input_files == 3
    done = [step for step in steps if step.phase == "documents" and step.total is not None]
    assert done[-1].done == done[-1].total == parted.manifest.input_bytes
    assert all(a.done <= b.done for a, b in itertools.pairwise(done))


def test_a_line_of_a_large_file_that_stops_the_work_is_named_by_its_place(tmp_path: Path, cut: Callable[[int], None]) -> None:
    cut(2000)
    good = json_lines(texts(50))
    path = write(tmp_path / "a.jsonl", good + b"{\n" + good)
    with pytest.raises(Exception, match=rf"a\.jsonl:byte {len(good)}: not JSON"):
        prepared_in(tmp_path / "prepared", data_spec(path), SerialExecutor())

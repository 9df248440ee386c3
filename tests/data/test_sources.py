"""Every format gives the same documents; Python's own library is read and never run."""

import gzip
import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from data import stdlib, tasks
from data.documents import Bad, Document
from data.errors import SourceError
from data.files import checksum
from data.sources import InputFile, list_files, listing, read_file, require_unchanged
from data.spec import SourceSpec
from tests.data.conftest import Preparation, data_spec, json_lines, texts, write

TEXTS = [*texts(5), "兩個黃鸝鳴翠柳，一行白鷺上青天。", "line\nbreak\tand tab"]


def read(path: str, **settings: str) -> list[Document | Bad]:
    source = SourceSpec(path=path, **settings)  # type: ignore[arg-type]
    return [item for file in list_files(source, "") for item in read_file(file, source, 1 << 20)]


def parquet(field: str, kind: pa.DataType | None = None) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"id": list(range(len(TEXTS))), field: pa.array(TEXTS, kind or pa.string())})
    pq.write_table(table, sink, row_group_size=2)
    return sink.getvalue()


FORMATS = {
    "lines.jsonl": json_lines(TEXTS, "body"),
    "lines.jsonl.gz": json_lines(TEXTS, "body"),
    "lines.jsonl.zst": zstandard.compress(json_lines(TEXTS, "body")),
    "table.parquet": parquet("body"),
    "views.parquet": parquet("body", pa.string_view()),
}


@pytest.mark.parametrize(("name", "content"), FORMATS.items(), ids=FORMATS)
def test_formats_agree(name: str, content: bytes, tmp_path: Path) -> None:
    documents = read(write(tmp_path / name, content), text_field="body", language="zh", domain="poems")
    assert [(d.text, d.language, d.domain) for d in documents if isinstance(d, Document)] == [
        (text, "zh", "poems") for text in TEXTS
    ]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_text_and_code_may_be_compressed(suffix: str, tmp_path: Path) -> None:
    long = "\n\n".join(_paragraphs(300))
    contents = {f"a.py{suffix}": "x = 1\n\n" * 20_000, f"b.txt{suffix}": long, f"c.txt{suffix}": "short\n\ntext"}
    for name, content in contents.items():
        raw = content.encode()
        write(tmp_path / name, zstandard.compress(raw) if suffix == ".zst" else raw)
    code, *pieces, short = (item for item in read(str(tmp_path / f"*{suffix or '[yt]'}")) if isinstance(item, Document))
    assert (code.text, short.text) == (contents[f"a.py{suffix}"], "short\n\ntext")
    assert len(pieces) > 20
    assert "".join(piece.text for piece in pieces) == long


def test_a_short_text_file_is_one_document(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", b"second\n\nfile")
    write(tmp_path / "a.txt", b"\xef\xbb\xbffirst")
    write(tmp_path / "empty.txt", b"")
    documents = read(str(tmp_path / "*.txt"))
    assert [d.text for d in documents if isinstance(d, Document)] == ["first", "second\n\nfile"]


def _paragraphs(count: int) -> list[str]:
    return [f"paragraph {i} " + "of some words " * 40 for i in range(count)]


def test_a_long_text_file_is_cut_at_blank_lines(tmp_path: Path) -> None:
    text = "\ufeff" + "\n\n".join(_paragraphs(300)) + "\n"
    path = write(tmp_path / "book.txt", text.encode())
    documents = [d for d in read(path) if isinstance(d, Document)]
    assert "\ufeff" + "".join(d.text for d in documents) == text
    assert all(d.text.endswith("\n\n") for d in documents[:-1])
    assert all(4096 <= len(d.text.encode()) < 4096 + 700 for d in documents[:-1])
    lines = text.splitlines()
    assert [lines[int(d.id.rpartition(":")[2]) - 1].strip("\ufeff") for d in documents] == [
        d.text.splitlines()[0] for d in documents
    ]


def test_a_long_text_file_without_blank_lines_is_cut_at_lines(tmp_path: Path) -> None:
    text = "\n".join(_paragraphs(300))
    documents = [d for d in read(write(tmp_path / "book.txt", text.encode())) if isinstance(d, Document)]
    assert "".join(d.text for d in documents) == text
    assert all(65536 <= len(d.text) < 65536 + 700 for d in documents[:-1])
    assert len(documents) == 3


@pytest.mark.parametrize("size", [50_000, 150_000])
@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_a_text_without_blank_lines_is_cut_where_a_document_would_be_too_large(size: int, suffix: str, tmp_path: Path) -> None:
    text = "\n".join(_paragraphs(size // 500))
    raw = text.encode()
    path = write(tmp_path / f"book.txt{suffix}", zstandard.compress(raw) if suffix else raw)
    [file] = list_files(SourceSpec(path=path), "")
    documents = [item for item in read_file(file, SourceSpec(path=path), 32_768) if isinstance(item, Document)]
    assert "".join(d.text for d in documents) == text
    assert all(32_768 - 700 < len(d.text) <= 32_768 for d in documents[:-1])
    lines = text.splitlines()
    assert [lines[int(d.id.rpartition(":")[2]) - 1] for d in documents] == [d.text.splitlines()[0] for d in documents]


def test_code_is_one_document_however_long(tmp_path: Path) -> None:
    code = "x = 1\n\n" * 20_000
    [document] = read(write(tmp_path / "a.py", code.encode()))
    assert isinstance(document, Document)
    assert document.text == code


def test_what_is_broken_in_a_long_text_is_one_piece_of_it(tmp_path: Path) -> None:
    good = "\n\n".join(_paragraphs(100)).encode() + b"\n\n"
    path = write(tmp_path / "book.txt", good + b"caf\xe9 au lait\n" + b"x" * 2_000_000 + b"\n\n" + good + b"caf\xe9\n\n" + good)
    items = read(path)
    bad = [item for item in items if isinstance(item, Bad)]
    assert [item.reason for item in bad] == ["broken_utf8", "oversized", "broken_utf8"]
    assert bad[1].detail.startswith(f"{path}:")
    assert sum(len(item.text.encode()) for item in items if isinstance(item, Document)) > 2.8 * len(good)


def test_globs_reach_into_folders(tmp_path: Path) -> None:
    write(tmp_path / "x" / "a.jsonl", json_lines(["one"]))
    write(tmp_path / "x" / "y" / "b.jsonl", json_lines(["two"]))
    assert len(read(str(tmp_path / "**" / "*.jsonl"))) == 2


def test_a_name_with_brackets_is_a_file_when_there_is_one(tmp_path: Path) -> None:
    assert len(read(write(tmp_path / "a[1].jsonl", json_lines(["one"])))) == 1


def test_members_of_a_gzip_file_are_read_on(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.jsonl.gz", json_lines(["one"])))
    path.write_bytes(path.read_bytes() * 3)
    assert len(read(str(path))) == 3


class Bucket(MemoryFileSystem):
    """An object store: files are fetched in ranges, known by tags, and answers remembered, as ``s3fs`` and ``gcsfs`` do it."""

    protocol = "bucket"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    tagged: ClassVar[bool] = True
    answers: ClassVar[dict[str, dict[str, Any]]] = {}

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        key = self._strip_protocol(path)
        if key not in self.answers:
            found: dict[str, Any] = super().info(path, **kwargs)
            if found["type"] == "directory":
                return found
            content = self.store[key].getvalue()
            self.answers[key] = {**found, "ETag": f'"{hashlib.md5(content).hexdigest()}"'} if self.tagged else found
        return self.answers[key]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.answers.clear()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("bucket://").strip("/")

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        return Ranges(self, path, mode, **kwargs) if mode == "rb" else super()._open(path, mode, **kwargs)


class Ranges(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.store[self.path].getbuffer()[start:end])


@pytest.mark.parametrize(("name", "content"), FORMATS.items(), ids=FORMATS)
def test_object_storage_is_read_through_fsspec(name: str, content: bytes) -> None:
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    store = fsspec.filesystem("bucket")
    for part in range(2):
        store.pipe(f"/{name}/{part}-{name}", gzip.compress(content) if name.endswith(".gz") else content)
    documents = read(f"bucket://{name}/*-{name}", text_field="body")
    assert [d.text for d in documents if isinstance(d, Document)] == TEXTS * 2
    with pytest.raises(SourceError, match="does not exist"):
        read(f"bucket://{name}/none.jsonl")


@pytest.mark.parametrize("tagged", [True, False], ids=["by its tag", "by its time"])
@pytest.mark.parametrize("length", [0, 9], ids=["of the same size", "of another size"])
def test_an_object_that_changes_while_it_is_read_stops_the_work(
    tagged: bool, length: int, monkeypatch: pytest.MonkeyPatch, preparation: Preparation
) -> None:
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    monkeypatch.setattr(Bucket, "tagged", tagged)
    store = fsspec.filesystem("bucket")
    store.invalidate_cache()
    for number in range(2):
        store.pipe(f"/changing/{number}.jsonl", json_lines(texts(20, seed=number)))
    spec = data_spec("bucket://changing/*.jsonl", on_bad_document="drop")
    reading, seen = tasks.read_file, []

    def changed(file: InputFile, *settings: Any) -> Iterator[Document | Bad]:
        yield from reading(file, *settings)
        seen.append(file.path)
        if len(seen) == 2:
            content = store.cat_file(file.path)
            store.pipe(file.path, content.replace(b"river", b"RIVER") + b" " * length)

    with monkeypatch.context() as patched:
        patched.setattr(tasks, "read_file", changed)
        with pytest.raises(SourceError, match=r"changing/1\.jsonl changed while it was read") as raised:
            preparation(spec)
    assert raised.value.pointer == "/data_pipeline/sources/0/path"
    assert preparation(spec).manifest.documents_read == 40


def test_an_object_of_no_stated_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    fsspec.filesystem("bucket").pipe("/unknown/a.jsonl", json_lines(TEXTS))
    monkeypatch.setattr(Bucket, "info", lambda self, path: {"name": path, "size": None, "type": "file"})
    with pytest.raises(SourceError, match="does not say how large"):
        read("bucket://unknown/a.jsonl")


def test_a_machine_with_another_python_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = list_files(SourceSpec(path="stdlib:code"), "")[0]
    require_unchanged(file)
    write(tmp_path / file.path.removeprefix("stdlib:"), b"x = 1\n")
    monkeypatch.setattr(stdlib, "root", lambda: tmp_path)
    with pytest.raises(SourceError, match="use one version of Python on all"):
        require_unchanged(file)


def test_a_file_that_was_only_touched_is_hashed_once_for_all_its_extents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(write(tmp_path / "a.jsonl", json_lines(TEXTS)))
    [file] = list_files(SourceSpec(path=str(path)), "")
    os.utime(path, ns=(0, 0))
    hashed: list[Path] = []

    def recorded(path: Path) -> str:
        hashed.append(path)
        return checksum(path)

    monkeypatch.setattr(listing, "checksum", recorded)
    for start in range(5):
        require_unchanged(replace(file, extent=(start, start + 1)))
    assert hashed == [path]


def test_storage_whose_package_is_missing_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(SourceError, match="s3fs"):
        read("s3://corpus/a.jsonl")


def test_reading_goes_on_after_a_line_that_is_too_long(tmp_path: Path) -> None:
    source = SourceSpec(path=write(tmp_path / "a.jsonl", json_lines(["x" * 5_000_000, "short"])))
    [file] = list_files(source, "")
    bad, good = read_file(file, source, 100)
    assert isinstance(bad, Bad)
    assert isinstance(good, Document)
    assert (bad.reason, good.text, good.id) == ("oversized", "short", f"{source.path}:2")


HUGE = 96 * 2**20

READ_ALL = """
import resource, sys
from data.sources import list_files, read_file
from data.spec import SourceSpec
def read(path):
    source = SourceSpec(path=path)
    return [getattr(item, "reason", "document") for file in list_files(source, "") for item in read_file(file, source, 1 << 16)]
read(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    print(*read(path))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def _zeros(path: Path, before: bytes = b"", after: bytes = b"") -> str:
    """A file with a hole of ``HUGE`` zeros."""
    with path.open("wb") as file:
        file.write(before)
        file.seek(HUGE, os.SEEK_CUR)
        file.write(after + b"\n")
    return str(path)


def test_a_document_however_large_is_never_in_memory(tmp_path: Path) -> None:
    good = json_lines(["short"])
    small = write(tmp_path / "small.jsonl.gz", good)
    response = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"
    record = b"WARC/1.1\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: %d\r\n\r\n%s"
    packed = zstandard.ZstdCompressor().compressobj()
    blocks = [packed.compress(bytes(2**20)) for _ in range(HUGE // 2**20)]
    (tmp_path / "lines.jsonl.zst").write_bytes(b"".join(blocks) + packed.compress(b"\n" + good) + packed.flush())
    pages = b"<html><body><p>word</p></body></html>"
    archive = [
        record % (len(response) + HUGE, response),
        b"\r\n\r\n" + record % (len(response) + len(pages), response + pages) + b"\r\n\r",
    ]
    paths = {
        _zeros(tmp_path / "lines.jsonl", good, b"\n" + good): "document oversized document",
        _zeros(tmp_path / "text.txt", b"text\n\n"): "document oversized",
        _zeros(tmp_path / "code.py"): "oversized",
        _zeros(tmp_path / "page.html"): "oversized",
        _zeros(tmp_path / "pages.warc", *archive): "oversized document",
        str(tmp_path / "lines.jsonl.zst"): "oversized document",
    }
    done = subprocess.run([sys.executable, "-c", READ_ALL, small, *paths], capture_output=True, text=True, check=True)
    *found, grown_kib = done.stdout.splitlines()
    assert found == list(paths.values())
    assert int(grown_kib) < 32 * 1024


def test_a_document_of_parquet_that_is_too_large_is_not_copied_after_it_was_decoded(tmp_path: Path) -> None:
    small = tmp_path / "small.parquet"
    pq.write_table(pa.table({"text": TEXTS}), small)
    huge = tmp_path / "huge.parquet"
    pq.write_table(pa.table({"text": ["short", "x" * HUGE, "short"]}), huge)
    command = [sys.executable, "-c", READ_ALL, str(small), str(huge)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, grown_kib = done.stdout.splitlines()
    assert found == "document oversized document"
    assert int(grown_kib) < 3.5 * HUGE / 1024  # its page, its array, and once more as that grows


def test_prose_and_code_share_no_module() -> None:
    prose, code = stdlib.modules("stdlib:prose"), stdlib.modules("stdlib:code")
    assert prose[0] == "pydoc_data/topics.py"
    assert not set(prose) & set(code)
    assert not any("test" in name.split("/") or "site-packages" in name for name in [*prose, *code])


def test_code_stays_under_its_cap() -> None:
    files = list_files(SourceSpec(path="stdlib:code"), "")
    assert stdlib.SOURCE_BYTES["stdlib:code"] * 0.9 < sum(f.size for f in files) <= stdlib.SOURCE_BYTES["stdlib:code"]


def test_docstrings_come_from_the_top_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = [
        '"""Top."""',
        'raise SystemExit("never run")',
        "class A:",
        '    """Of A."""',
        "    def f(self):",
        '        """Of f."""',
        "def g(): 1",
    ]
    write(tmp_path / "pkg" / "mod.py", "\n".join(module).encode())
    monkeypatch.setattr(stdlib, "root", lambda: tmp_path)
    assert list(stdlib.texts("stdlib:prose", "pkg/mod.py")) == [
        ("pkg/mod.py", "pkg.mod\nTop.\n\npkg.mod.A\nOf A.\n\npkg.mod.A.f\nOf f.")
    ]


def test_no_module_of_the_library_is_imported_for_its_text() -> None:
    script = """
import sys
from data.errors import SourceError
from data.sources import list_files, read_file
from data.spec import SourceSpec
before = set(sys.modules)
for kind in ("stdlib:prose", "stdlib:code"):
    source = SourceSpec(path=kind)
    for file in list_files(source, "")[:20]:
        list(read_file(file, source, 1 << 30))
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

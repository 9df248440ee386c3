"""What cannot be trained on is refused with the file, the line and the field to mend."""

import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data.errors import DocumentError, MantaError, NotEnoughData, SourceError
from data.manifest import require_rows
from data.spec import SourceSpec
from tests.data.conftest import Preparation, data_spec, json_lines, texts, write

GOOD = json_lines(texts(20))


def _parquet(**columns: list[object] | pa.Array) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def _hole(content: bytes) -> bytes:
    """Zeros where the first page lies."""
    return content[:4] + bytes(200) + content[204:]


# name of the file, its bytes as they lie on disk, reason, what the message says, the field
DOCUMENTS: dict[str, tuple[str, bytes, str, str, str]] = {
    "binary text": ("a.txt", b"\x89PNG\0\0rest of it", "binary", "a.txt: binary, not text", "sources/0/path"),
    "binary lines": ("a.jsonl", GOOD + b"\0\1\2\n", "binary", "a.jsonl:21: binary", "sources/0/path"),
    "broken UTF-8": (
        "a.jsonl",
        GOOD + b'{"text": "caf\xe9 au lait"}\n',
        "broken_utf8",
        "a.jsonl:21: not UTF-8: byte 0xe9 at 13",
        "sources/0/path",
    ),
    "half a surrogate pair": ("a.jsonl", GOOD + b'{"text": "\\ud83d"}\n', "broken_utf8", "a.jsonl:21: ", "sources/0/path"),
    "broken JSON": (
        "a.jsonl",
        GOOD + b'{"text": "open\n',
        "broken_json",
        "a.jsonl:21: not JSON: Invalid control character at column 15",
        "sources/0/path",
    ),
    "no such field": (
        "a.jsonl",
        GOOD + b'{"body": "x", "id": 1}\n',
        "no_text_field",
        "a.jsonl:21: no field 'text'; it has body, id",
        "sources/0/text_field",
    ),
    "a number too long": (
        "a.jsonl",
        GOOD + b'{"text": "x", "n": %s}\n' % (b"9" * 4301),
        "broken_json",
        "a.jsonl:21: not JSON that can be read",
        "sources/0/path",
    ),
    "not an object": ("a.jsonl", GOOD + b"[1]\n", "no_text_field", "a.jsonl:21: no field", "sources/0/text_field"),
    "a number": ("a.jsonl", GOOD + b'{"text": 7}\n', "not_text", "field 'text' is int, not text", "sources/0/text_field"),
    "a huge line": (
        "a.jsonl",
        GOOD + json_lines(["x" * 5000]) + json_lines(texts(3, seed=9)),
        "oversized",
        "a.jsonl:21: a document larger than max_document_bytes (4,500)",
        "max_document_bytes",
    ),
    "a huge line of a text": ("a.txt", b"word " * 1000, "oversized", "a.txt:1: a document larger than", "max_document_bytes"),
    "a huge program": ("a.py", b"word " * 1000, "oversized", "a.py: a document larger than", "max_document_bytes"),
    "gzip cut short": (
        "a.jsonl.gz",
        gzip.compress(GOOD, mtime=0)[:-9],
        "broken_compression",
        "a.jsonl.gz: cannot be decompressed after line",
        "sources/0/path",
    ),
    "not gzip": ("a.jsonl.gz", GOOD, "broken_compression", "cannot be decompressed after line 0", "sources/0/path"),
    "zstd cut short": (
        "a.jsonl.zst",
        zstandard.compress(GOOD)[:-9],
        "broken_compression",
        "a.jsonl.zst: cannot be decompressed after line",
        "sources/0/path",
    ),
    "no such column": (
        "a.parquet",
        _parquet(body=["some text"]),
        "no_text_field",
        "a.parquet: no column 'text'; it has body",
        "sources/0/text_field",
    ),
    "a null": ("a.parquet", _parquet(text=[*texts(3), None]), "not_text", "a.parquet:row 4: field", "sources/0/text_field"),
    "broken UTF-8 in Parquet": (
        "a.parquet",
        _parquet(text=pa.array([*(t.encode() for t in texts(3)), b"caf\xe9 au lait", b"what comes after"]).view(pa.string())),
        "broken_utf8",
        "a.parquet:row 4: not UTF-8: byte 0xe9 at 3",
        "sources/0/path",
    ),
    "a nested column": (
        "a.parquet",
        _parquet(text=[{"body": text} for text in texts(3)]),
        "not_text",
        "a.parquet: column 'text' is struct<body: string>, not text",
        "sources/0/text_field",
    ),
    "a column of numbers": ("a.parquet", _parquet(text=[1, 2]), "not_text", "column 'text' is int64", "sources/0/text_field"),
    "a column of nothing": (
        "a.parquet",
        _parquet(text=[None, None]),
        "not_text",
        "column 'text' is null",
        "sources/0/text_field",
    ),
    "Parquet cut short": (
        "a.parquet",
        _parquet(text=texts(99))[:-9],
        "broken_parquet",
        "a.parquet: not Parquet",
        "sources/0/path",
    ),
    "Parquet with a hole": (
        "a.parquet",
        _hole(_parquet(text=texts(99))),
        "broken_parquet",
        "a.parquet: unreadable after row 0",
        "sources/0/path",
    ),
    "a huge row": (
        "a.parquet",
        _parquet(text=[*texts(2), "x" * 5000]),
        "oversized",
        "a.parquet:row 3: a document larger than",
        "max_document_bytes",
    ),
    "text in gzip cut short": (
        "a.txt.gz",
        gzip.compress(GOOD)[:-9],
        "broken_compression",
        "a.txt.gz: cannot",
        "sources/0/path",
    ),
    "code in zstd cut short": (
        "a.py.zst",
        zstandard.compress(GOOD)[:-9],
        "broken_compression",
        "a.py.zst: cannot be decompressed: ",
        "sources/0/path",
    ),
    "UTF-16 text": ("a.txt", "some words".encode("utf-16"), "utf16", "a.txt: UTF-16, not UTF-8", "sources/0/path"),
    "UTF-16 lines": ("a.jsonl", GOOD.decode().encode("utf-16"), "utf16", "a.jsonl: UTF-16, not UTF-8", "sources/0/path"),
    "long UTF-16 text": ("a.txt", (GOOD.decode() * 40).encode("utf-16"), "utf16", "a.txt: UTF-16, not UTF-8", "sources/0/path"),
    "not Parquet": ("a.parquet", b"PAR1 is only its start", "broken_parquet", "a.parquet: not Parquet", "sources/0/path"),
}


@pytest.mark.parametrize(("name", "content", "reason", "message", "field"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_bad_document_stops_the_work_or_is_counted(
    name: str, content: bytes, reason: str, message: str, field: str, tmp_path: Path, preparation: Preparation
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    other = write(tmp_path / "good.jsonl", json_lines(texts(30, seed=5)))
    sources = (str(path), other)
    with pytest.raises(DocumentError) as raised:
        preparation(data_spec(*sources, max_document_bytes=4500))
    assert message in raised.value.detail
    assert raised.value.pointer == f"/data_pipeline/{field}"
    assert not any(left.is_dir() for left in (tmp_path / "prepared").glob("[!.]*"))

    manifest = preparation(data_spec(*sources, max_document_bytes=4500, on_bad_document="drop")).manifest
    assert manifest.drops[reason] == 1
    assert manifest.documents("train") + manifest.documents("held_out") >= 30


def test_rows_after_a_broken_string_are_read(tmp_path: Path, preparation: Preparation) -> None:
    raw = [text.encode() for text in texts(30)]
    raw[3] = b"caf\xe9 au lait"
    path = write(tmp_path / "a.parquet", _parquet(text=pa.array(raw).view(pa.string())))
    manifest = preparation(data_spec(path, on_bad_document="drop")).manifest
    assert (manifest.documents_read, manifest.drops) == (30, {"broken_utf8": 1})


def test_what_arrow_cannot_read_names_the_file(
    tmp_path: Path, preparation: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(stream: object, **settings: object) -> None:
        raise pa.ArrowNotImplementedError("an encoding of tomorrow")

    monkeypatch.setattr(pq, "ParquetFile", unknown)
    path = write(tmp_path / "a.parquet", b"PAR1")
    with pytest.raises(SourceError, match=r"a\.parquet cannot be read as Parquet .*tomorrow") as raised:
        preparation(data_spec(path, on_bad_document="drop"))
    assert raised.value.pointer == "/data_pipeline/sources/0/path"


SOURCES: dict[str, tuple[Callable[[Path], str], str]] = {
    "does not exist": (lambda d: str(d / "none.jsonl"), "none.jsonl does not exist"),
    "matches nothing": (lambda d: str(d / "*.jsonl"), "no file matches"),
    "empty": (lambda d: write(d / "a.txt", b""), "a.txt is empty"),
    "only empty files": (lambda d: (write(d / "a.txt", b""), write(d / "b.txt", b""), str(d / "*.txt"))[-1], "is empty"),
    "a folder": (lambda d: str(d), "is a folder; name its files"),
    "no known format": (lambda d: write(d / "a.docx", b"text"), "a.docx: its format is not known; use one of .txt"),
    "a name that is no text": (
        lambda d: (write(d / os.fsdecode(b"caf\xe9.jsonl"), GOOD), str(d / "*.jsonl"))[-1],
        r"caf\xe9.jsonl': its name is not UTF-8; rename it",
    ),
    "no known place": (lambda d: "nowhere://bucket/a.txt", "nowhere"),
    "no such part of Python": (lambda d: "stdlib:poems", "stdlib:poems is not one of stdlib:prose, stdlib:code"),
}


@pytest.mark.parametrize(("path", "message"), SOURCES.values(), ids=SOURCES)
def test_a_source_that_cannot_be_read_is_named(
    path: Callable[[Path], str], message: str, tmp_path: Path, preparation: Preparation
) -> None:
    good = write(tmp_path / "elsewhere" / "good.jsonl", GOOD)
    with pytest.raises(SourceError) as raised:
        preparation(data_spec(good, SourceSpec(path=path(tmp_path)), on_bad_document="drop"))
    assert message in raised.value.detail
    assert raised.value.pointer == "/data_pipeline/sources/1/path"


NOT_ENOUGH: dict[str, tuple[bytes, str]] = {
    "one document": (json_lines(texts(1)), "only one document is left"),
    "the same again": (json_lines(texts(1) * 5), "only one document is left (5 read; left out: 4 duplicate)"),
    "all too short": (json_lines(["a", "b"]), "no document is left of en/web (2 read; left out: 2 too_short)"),
    "blank lines": (b"\n\n\n", "no document is left of en/web (0 read)"),
}


@pytest.mark.parametrize(("content", "message"), NOT_ENOUGH.values(), ids=NOT_ENOUGH)
def test_too_little_text_says_what_became_of_it(content: bytes, message: str, tmp_path: Path, preparation: Preparation) -> None:
    with pytest.raises(NotEnoughData) as raised:
        preparation(data_spec(write(tmp_path / "a.jsonl", content)))
    assert message in raised.value.detail
    assert raised.value.pointer == "/data_pipeline/sources/0/path"


def test_fewer_rows_than_one_batch(tmp_path: Path, preparation: Preparation) -> None:
    manifest = preparation(data_spec(write(tmp_path / "a.jsonl", GOOD))).manifest
    require_rows(manifest, manifest.rows("train"))
    with pytest.raises(NotEnoughData, match="fewer than one global batch of") as raised:
        require_rows(manifest, manifest.rows("train") + 1)
    assert raised.value.pointer == "/training/global_batch_size"


def test_a_segment_without_documents_or_with_less_than_a_batch_is_named(tmp_path: Path, preparation: Preparation) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(texts(60)))
    pair = [{"sequence_length": 16, "fraction": 0.9}, {"sequence_length": 32, "fraction": 0.1}]
    manifest = preparation(data_spec(path, curriculum=pair)).manifest
    rows = manifest.segments[1].rows
    require_rows(manifest, rows)
    with pytest.raises(NotEnoughData, match=f"fill {rows} rows of 32 tokens, fewer than one global batch of {rows + 1};"):
        require_rows(manifest, rows + 1)
    with pytest.raises(NotEnoughData, match="en/web are too few for the curriculum: none falls to its part of 32") as raised:
        preparation(data_spec(path, curriculum=[{**pair[0], "fraction": 0.9999}, {**pair[1], "fraction": 0.0001}]))
    assert raised.value.pointer == "/data_pipeline/curriculum/1"


TOKENIZERS: dict[str, tuple[dict[str, object], str, str]] = {
    "missing": ({"path": "/no/such.model"}, "/no/such.model cannot be read", "/tokenizer/path"),
    "not one": ({"path": __file__}, "is not a SentencePiece model", "/tokenizer/path"),
}


@pytest.mark.parametrize(("settings", "message", "pointer"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_tokenizer_that_cannot_be_used(
    settings: dict[str, object], message: str, pointer: str, tmp_path: Path, preparation: Preparation
) -> None:
    with pytest.raises(MantaError, match=message) as raised:
        preparation(data_spec(write(tmp_path / "a.jsonl", GOOD)), **settings)
    assert raised.value.pointer == pointer


def test_more_characters_than_pieces(tmp_path: Path, preparation: Preparation) -> None:
    every = ["".join(chr(0x4E00 + (i * 61 + j) % 6000) for j in range(60)) for i in range(200)]
    spec = data_spec(write(tmp_path / "a.jsonl", json_lines(every)))
    with pytest.raises(SourceError, match="vocab_size 300 has no room for the characters") as raised:
        preparation(spec)
    assert raised.value.pointer == "/tokenizer/vocab_size"


def test_one_document_of_50_mb_is_refused_by_default(tmp_path: Path, preparation: Preparation) -> None:
    path = write(tmp_path / "a.jsonl.gz", GOOD + json_lines(["x" * 50_000_000]) + json_lines(texts(5, seed=2)))
    with pytest.raises(DocumentError, match=r"a\.jsonl\.gz:21: a document larger than"):
        preparation(data_spec(path))
    manifest = preparation(data_spec(path, on_bad_document="drop")).manifest
    assert manifest.drops == {"oversized": 1}
    assert manifest.documents_read == 26

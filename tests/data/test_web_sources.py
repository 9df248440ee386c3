"""Web pages: what of an archive becomes a document, what is counted, and in which characters a page is written."""

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import zstandard

from data.documents import Bad, Document
from data.errors import DocumentError
from data.sources import list_files, read_file, web
from data.sources.web import decode_html
from data.spec import SourceSpec
from data.stages.libraries import LibraryMissing
from tests.data.conftest import Preparation, data_spec, json_lines, texts, write

SENTENCE = "The committee met again on Tuesday and could not agree on who should pay for the bridge over the river. "
CHINESE = "两个黄鹂鸣翠柳，一行白鹭上青天。窗含西岭千秋雪，门泊东吴万里船。" * 3


def html(text: str, charset: str = "") -> str:
    meta = f'<meta charset="{charset}">' if charset else ""
    menu = '<nav class="menu"><ul><li><a href="/">Home</a></li><li><a href="/about">About us</a></li></ul></nav>'
    script = "<script>var tracker = 1;</script>"
    return f"<html><head>{meta}<title>A page</title>{script}</head><body>{menu}<article><p>{text}</p></article></body></html>"


PAGE = html(SENTENCE * 3).encode()


def record(
    payload: bytes, url: str = "https://example.org/a", kind: str = "response", warc_type: str = "application/http", **more: str
) -> bytes:
    lines = {
        "WARC-Type": kind,
        "WARC-Record-ID": "<urn:uuid:12345678-1234-1234-1234-1234567890ab>",
        "WARC-Date": "2026-01-01T00:00:00Z",
        "WARC-Target-URI": url,
        "Content-Type": warc_type,
        **{name.replace("_", "-"): value for name, value in more.items()},
        "Content-Length": str(len(payload)),
    }
    head = "WARC/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    return head.encode() + payload + b"\r\n\r\n"


def response(body: bytes, status: str = "200 OK", kind: str = "text/html", more: str = "", **settings: str) -> bytes:
    return record(f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}\r\n".encode() + body, **settings)


def read(path: str, max_bytes: int = 1 << 20) -> list[Document | Bad]:
    source = SourceSpec(path=path)
    return [item for file in list_files(source, "") for item in read_file(file, source, max_bytes)]


def outcomes(path: str, max_bytes: int = 1 << 20) -> list[str]:
    """``document``, or the reason."""
    return [item.reason if isinstance(item, Bad) else "document" for item in read(path, max_bytes)]


ARCHIVE = [
    record(b"software: a crawler\r\n", kind="warcinfo", warc_type="application/warc-fields"),
    record(b"GET / HTTP/1.1\r\n\r\n", kind="request"),
    response(PAGE, url="https://example.org/1"),
    response(b"\x89PNG\0\0", kind="image/png"),
    response(PAGE, status="404 Not Found"),
    response(html("").encode()),
    record(PAGE, kind="resource", warc_type="text/html; charset=utf-8", url="<https://example.org/2>"),
    response(html(CHINESE).encode("gbk"), kind="text/html; charset=gb2312", url="https://example.org/3"),
]
PACKED: dict[str, Callable[[list[bytes]], bytes]] = {
    "a.warc": b"".join,
    "a.warc.gz": lambda records: b"".join(gzip.compress(each, mtime=0) for each in records),
    "a.warc.zst": lambda records: zstandard.compress(b"".join(records)),
}


@pytest.mark.parametrize(("name", "pack"), PACKED.items(), ids=PACKED)
def test_the_pages_of_an_archive_are_documents_and_the_rest_is_counted(
    name: str, pack: Callable[[list[bytes]], bytes], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(pack(ARCHIVE))
    items = read(str(path))
    assert [(item.text, item.url) for item in items if isinstance(item, Document)] == [
        ((SENTENCE * 3).strip(), "https://example.org/1"),
        ((SENTENCE * 3).strip(), "https://example.org/2"),
        (CHINESE, "https://example.org/3"),
    ]
    assert [(item.reason, item.detail, item.tolerated) for item in items if isinstance(item, Bad)] == [
        ("not_html", f"{path}:record 2: image/png", True),
        ("http_status", f"{path}:record 3: status 404", True),
        ("no_main_text", f"{path}:record 4: no main text", True),
    ]


def test_an_archive_stops_nobody_with_what_it_always_holds(tmp_path: Path, preparation: Preparation) -> None:
    pages = [response(html(f"In year {i} the {SENTENCE}").encode(), url=f"https://example.org/{i}") for i in range(30)]
    (tmp_path / "a.warc").write_bytes(b"".join([*ARCHIVE[2:6], *pages]))
    manifest = preparation(data_spec(str(tmp_path / "a.warc"))).manifest
    assert (manifest.documents_read, manifest.drops) == (34, {"http_status": 1, "no_main_text": 1, "not_html": 1})


CHUNKED = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (PAGE[:50], PAGE[50:], b""))
TRANSFERS: dict[str, tuple[bytes, str, str]] = {
    "chunked": (CHUNKED, "Transfer-Encoding: chunked\r\n", "document"),
    "gzip": (gzip.compress(PAGE), "Content-Encoding: gzip\r\n", "document"),
    "deflate": (zlib.compress(PAGE), "Content-Encoding: deflate\r\n", "document"),
    "not gzip": (PAGE, "Content-Encoding: gzip\r\n", "broken_encoding"),
    "no known one": (PAGE, "Content-Encoding: weird\r\n", "broken_encoding"),
    "gzip of too much": (gzip.compress(b"x" * 5_000_000), "Content-Encoding: gzip\r\n", "oversized"),
}


@pytest.mark.parametrize(("body", "header", "outcome"), TRANSFERS.values(), ids=TRANSFERS)
def test_what_servers_packed_is_unpacked(body: bytes, header: str, outcome: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.warc", response(body, more=header) + response(PAGE))
    assert outcomes(path) == [outcome, "document"]


WHOLE = response(PAGE)
CUT: dict[str, tuple[bytes, list[str], str]] = {
    "in a page": (WHOLE * 2 + WHOLE[:-60], ["document", "document", "broken_warc"], ":record 3: cut short: "),
    "in a page's header": (
        WHOLE + WHOLE[:100],
        ["document", "broken_warc"],
        ":record 2: cut short: 0 bytes of an unknown number",
    ),
    "no archive": (b"what is this?\r\n" * 9, ["broken_warc"], ": unreadable after record 0: "),
    "junk behind a record": (WHOLE + b"junk\r\n" * 9, ["document", "broken_warc"], ": unreadable after record 1: "),
}


@pytest.mark.parametrize(("content", "expected", "message"), CUT.values(), ids=CUT)
def test_an_archive_cut_short_says_where(content: bytes, expected: list[str], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.warc", content)
    assert outcomes(path) == expected
    last = read(path)[-1]
    assert isinstance(last, Bad)
    assert f"{path}{message}" in last.detail
    assert not last.tolerated


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc.zst"])
def test_a_compressed_archive_cut_short_keeps_what_was_before(name: str, tmp_path: Path, preparation: Preparation) -> None:
    path = tmp_path / name
    pages = [response(html(f"In year {i} the {SENTENCE}" * 30).encode()) for i in range(200)]  # some blocks of decompression
    path.write_bytes(PACKED[name](pages)[:-20])
    with pytest.raises(DocumentError, match=rf"{name}: unreadable after record 1\d\d: ") as raised:
        preparation(data_spec(str(path)))
    assert raised.value.pointer == "/data_pipeline/sources/0/path"
    other = write(tmp_path / "b.jsonl", json_lines(texts(9)))
    manifest = preparation(data_spec(str(path), other, on_bad_document="drop")).manifest
    assert manifest.drops["broken_warc"] == 1
    assert manifest.documents_read > 9 + 100


def test_a_page_that_is_too_large_is_passed_over(tmp_path: Path) -> None:
    records = [response(b"x" * 300_000), response(b"x" * 300_000, kind="image/png"), WHOLE]
    assert outcomes(write(tmp_path / "a.warc", b"".join(records)), 5000) == ["oversized", "not_html", "document"]


@pytest.mark.parametrize("name", ["a.html", "b.htm", "a.html.gz", "a.html.zst"])
def test_html_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write(path, zstandard.compress(PAGE) if name.endswith(".zst") else PAGE)
    [document] = read(str(path))
    assert isinstance(document, Document)
    assert (document.text, document.id, document.url) == ((SENTENCE * 3).strip(), str(path), "")
    assert outcomes(write(tmp_path / "none.html", html("").encode())) == ["no_main_text"]
    assert outcomes(write(tmp_path / "image.html", b"\x89PNG\0\0")) == ["binary"]


# as the server says, as the page says, as it is
CHARACTERS: dict[str, tuple[str, str, str]] = {
    "all agree": ("utf-8", "utf-8", "utf-8"),
    "nobody says": ("", "", "utf-8"),
    "the page is right": ("utf-8", "gb2312", "gb18030"),
    "the server is right": ("gbk", "utf-8", "gb18030"),
    "nobody is right": ("utf-8", "utf-8", "gb18030"),
    "no such encoding": ("x-none", "x-none", "gb18030"),
    "both wrong of UTF-8": ("iso-8859-1", "big5", "utf-8"),
    "a mark in UTF-8": ("", "", "utf-8-sig"),
    "a mark in UTF-16": ("", "utf-8", "utf-16"),
}


@pytest.mark.parametrize(("server", "page", "real"), CHARACTERS.values(), ids=CHARACTERS)
def test_characters_are_found(server: str, page: str, real: str) -> None:
    assert decode_html(html(CHINESE, page).encode(real), server or None) == html(CHINESE, page)


def test_other_scripts_and_broken_bytes() -> None:
    for text, real in (
        ("Привет, как дела? " * 9, "cp1251"),
        ("今日はいい天気ですね。" * 9, "shift_jis"),
        ("兩個黃鸝鳴翠柳，" * 9, "big5"),
    ):
        assert decode_html(text.encode(real), None) == text
    assert decode_html("déjà vu ".encode() * 9 + b"\xff", "utf-8") == "déjà vu " * 9 + "\ufffd"


def test_a_page_nested_a_hundred_thousand_deep_is_refused_at_once(tmp_path: Path) -> None:
    assert outcomes(write(tmp_path / "a.html", b"<div>" * 100_000 + b"</x>" * 100_000 + PAGE)) == ["tangled_html"]
    flat = html("".join(f"<p>{SENTENCE}<br><img src=a.png></p>" for _ in range(2000))).encode()
    assert outcomes(write(tmp_path / "b.html", flat)) == ["document"]


def test_a_machine_without_the_library_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(web.importlib, "import_module", missing)
    with pytest.raises(LibraryMissing, match="HTML and WARC need fastwarc") as raised:
        list_files(SourceSpec(path=write(tmp_path / "a.html", PAGE)), "/data_pipeline/sources/0")
    assert raised.value.pointer == "/data_pipeline/sources/0/path"


def test_archives_and_pages_are_read_from_object_storage() -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/crawl/a.warc.gz", PACKED["a.warc.gz"](ARCHIVE))
    store.pipe("/crawl/b.html.zst", zstandard.compress(PAGE))
    assert outcomes("memory://crawl/*") == [
        *("document", "not_html", "http_status", "no_main_text"),
        *("document", "document", "document"),
    ]


def test_real_pages(tmp_path: Path) -> None:
    corpus = Path(__file__).parents[3] / "shared" / "corpus" / "web-html.jsonl.gz"
    if not corpus.exists():
        pytest.skip("no corpus of pages here")
    pages = [json.loads(line)["html"] for line in gzip.decompress(corpus.read_bytes()).splitlines()]
    path = write(tmp_path / "a.warc", b"".join(response(page.encode()) for page in pages))
    assert outcomes(path) == ["document"] * 40
    shares = [len(item.text) / len(page) for item, page in zip(read(path), pages, strict=True) if isinstance(item, Document)]
    assert 0.005 < sorted(shares)[20] < 0.2

"""Web pages: HTML files, and WARC archives of them. A page's main text is the document.

The main text is what Resiliparse's extraction keeps (Bevendorff et al., ECIR 2018). Archives are full of what is no page:
images, errors, empty pages. That is counted (``tolerated``) and never an error.
"""

import importlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from data.documents import Bad, Document
from data.sources.streams import about_bytes, open_file
from data.sources.text import read_whole
from data.sources.values import UTF16, oversized
from data.spec import SourceSpec
from data.stages.libraries import LibraryMissing

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

WEB_LIBRARIES = ("fastwarc", "resiliparse")
_HTML = ("text/html", "application/xhtml+xml")
_WEB = re.compile(r"\.(?:html?|warc)(?:\.gz|\.zst)?$")
_HTTP_HEADER_BYTES = 64 * 1024
# Extraction takes a step for each level above each tag. 40 real pages needed at most 86,000; so many take half a minute.
_MOST_STEPS = 20_000_000
_TAG = re.compile(r"<(/?)(?!(?:area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr)\b)([a-z][a-z0-9]*)", re.I)


def is_web(path: str) -> bool:
    return _WEB.search(path) is not None


def require_web(at: str) -> None:
    """
    Raises:
        LibraryMissing: this machine cannot read web pages.
    """
    try:
        for name in WEB_LIBRARIES:
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise LibraryMissing(f"HTML and WARC need {error.name}: pip install -e '.[data]'", pointer=at) from error


def read_html(path: str, source: SourceSpec, max_bytes: int) -> Iterator[Document | Bad]:
    """One page."""
    raw = read_whole(path, max_bytes)
    yield raw if isinstance(raw, Bad) else _page(raw, None, path, "", source)


def read_warc(path: str, source: SourceSpec, max_bytes: int) -> Iterator[Document | Bad]:
    """The pages among an archive's responses and resources; other records are none of ours."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    number = 0
    with open_file(path) as file:
        try:
            stream, kinds = _Stream(file), WarcRecordType.response | WarcRecordType.resource
            records = ArchiveIterator(stream, record_types=kinds, parse_http=False, stream_detect=False)  # type: ignore[arg-type]
            for record in records:
                item = _record(record, f"{path}:record {number + 1}", source, max_bytes)
                if isinstance(item, Bad) and item.reason == "broken_warc":
                    stream.require_whole()
                number += 1
                yield item
            stream.require_whole()
        except OSError as error:
            if not about_bytes(error):
                raise
            yield Bad("broken_warc", f"{path}: unreadable after record {number}: {error}")


class _Stream:
    """A file for FastWARC, which ends the process's thread with a panic where ``read`` or ``tell`` raises."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at = 0
        self._error: OSError | None = None

    def read(self, size: int) -> bytes:
        if self._error is not None:
            return b""
        try:
            block = self._file.read(size)
        except OSError as error:
            self._error = error
            return b""
        self._at += len(block)
        return block

    def tell(self) -> int:
        return self._at

    def require_whole(self) -> None:
        """Raises what ``read`` met."""
        if self._error is not None:
            raise self._error


def _record(record: "WarcRecord", where: str, source: SourceSpec, max_bytes: int) -> Document | Bad:
    if record.content_length > max_bytes + _HTTP_HEADER_BYTES:
        if record.is_http:
            record.parse_http()
        return _no_page(record, record, where) or oversized(where, max_bytes)
    stated, block = record.headers.get("Content-Length"), record.reader.read()
    if stated is None or str(len(block)) != stated.strip():
        return Bad("broken_warc", f"{where}: cut short: {len(block)} bytes of {stated or 'an unknown number'}")
    answer = _answer(block, record.is_http)
    try:
        if answer.is_http:
            answer.parse_http(auto_decode="all")
        if bad := _no_page(record, answer, where):
            return bad
        raw = answer.reader.read(max_bytes + 1)
    except OSError as error:
        return Bad("broken_encoding", f"{where}: {error}", tolerated=True)
    if len(raw) > max_bytes:
        return oversized(where, max_bytes)
    url = (record.headers.get("WARC-Target-URI") or "").strip("<>")
    return _page(raw, answer.http_charset, where, url, source)


def _answer(block: bytes, is_http: bool) -> "WarcRecord":
    """What a record holds, on its own: the archive goes on behind it whatever is wrong in it."""
    from fastwarc.warc import WarcRecord

    answer = WarcRecord()
    answer.set_bytes_content(block)
    answer.is_http = is_http
    return answer


def _no_page(record: "WarcRecord", answer: "WarcRecord", where: str) -> Bad | None:
    """What a record is if it is no page that a server gave."""
    if answer.is_http:
        status, stated = answer.http_headers.status_code, answer.http_content_type
        if status is None or not 200 <= status < 300:
            return Bad("http_status", f"{where}: status {status}", tolerated=True)
    else:
        stated = record.headers.get("Content-Type")
    kind = (record.headers.get("WARC-Identified-Payload-Type") or stated or "").partition(";")[0].strip().lower()
    return None if kind in _HTML else Bad("not_html", f"{where}: {kind or 'of no stated type'}", tolerated=True)


def _page(raw: bytes, charset: str | None, where: str, url: str, source: SourceSpec) -> Document | Bad:
    """
    Args:
        charset: as the server stated it; pages and servers are often wrong about that.
    """
    from resiliparse.extract.html2text import extract_plain_text

    if b"\0" in raw and not raw.startswith(UTF16):
        return Bad("binary", f"{where}: binary, not HTML (a zero byte at {raw.index(0)})", tolerated=True)
    html = decode_html(raw, charset)
    if _steps(html) > _MOST_STEPS:
        return Bad("tangled_html", f"{where}: its tags are nested too deep", tolerated=True)
    text = extract_plain_text(html, main_content=True, alt_texts=False).strip()
    if not text:
        return Bad("no_main_text", f"{where}: no main text", tolerated=True)
    return Document(text, where, source.language, source.domain, url)


def decode_html(raw: bytes, charset: str | None) -> str:
    """A page's characters: by its mark of byte order; as UTF-8 where that all but fits; by the server's word, the page's, or
    what its bytes look like, whichever fits first."""
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    if raw.startswith(UTF16):
        return raw.decode("utf-16", "replace")
    text = raw.decode("utf-8-sig", "replace")
    strange = text.count("\ufffd")
    if not strange or 20 * strange <= sum(character > "\x7f" for character in text):
        return text
    names = [map_encoding_to_html5(charset, fallback_utf8=False)] if charset else []
    names += [detect_encoding(raw, from_html_meta=True), detect_encoding(raw)]
    found = ["gb18030" if name == "gbk" else name for name in names if name]  # of which GBK is a part
    for name in found:
        try:
            return raw.decode(name)
        except UnicodeDecodeError:
            continue
    return raw.decode(found[-1], "replace")


def _steps(html: str) -> int:
    """About the sum of all tags' depths; 0 where it cannot be many."""
    if html.count("<") ** 2 // 2 <= _MOST_STEPS:
        return 0
    open_tags: Counter[str] = Counter()
    depth = steps = 0
    for close, name in _TAG.findall(html):
        if not close:
            open_tags[name] += 1
            depth += 1
        elif open_tags[name]:  # a closing tag that nothing opened closes nothing
            open_tags[name] -= 1
            depth -= 1
        steps += depth
    return steps

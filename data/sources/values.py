"""Documents out of bytes and fields, or what is wrong with them."""

from typing import Any

from data.documents import Bad, Document
from data.spec import SourceSpec

UTF16 = (b"\xff\xfe", b"\xfe\xff")
"""Byte order marks that begin a text in UTF-16."""


def decode(raw: bytes, where: str, source: SourceSpec) -> Document | Bad:
    if raw.startswith(UTF16):
        return utf16(where)
    if b"\0" in raw:
        return Bad("binary", f"{where}: binary, not text (a zero byte at {raw.index(0)})")
    try:
        return Document(raw.decode("utf-8-sig"), where, source.language, source.domain)
    except UnicodeDecodeError as error:
        return not_utf8(where, error)


def text_value(value: Any, where: str, source: SourceSpec) -> Document | Bad:
    """Of the text field."""
    if not isinstance(value, str):
        return Bad("not_text", f"{where}: field {source.text_field!r} is {type(value).__name__}, not text", "text_field")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # an escaped half of a surrogate pair
        return Bad("broken_utf8", f"{where}: character {error.start} is half of a surrogate pair")
    return Document(value, where, source.language, source.domain)


def with_url(document: Document | Bad, url: Any, where: str, source: SourceSpec) -> Document | Bad:
    """``url`` is what ``url_field`` holds; None where there is no such field, which is in order."""
    if isinstance(document, Bad) or url is None:
        return document
    if not isinstance(url, str):
        return Bad("not_text", f"{where}: field {source.url_field!r} is {type(url).__name__}, not text", "url_field")
    document.url = url.encode(errors="replace").decode()  # half of a surrogate pair is no character
    return document


def utf16(where: str) -> Bad:
    return Bad("utf16", f"{where}: UTF-16, not UTF-8 (it begins with a mark of byte order); convert it")


def not_utf8(where: str, error: UnicodeDecodeError) -> Bad:
    return Bad("broken_utf8", f"{where}: not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}")


def oversized(where: str, max_bytes: int) -> Bad:
    return Bad("oversized", f"{where}: a document larger than max_document_bytes ({max_bytes:,})", "max_document_bytes")


def broken_compression(path: str, after: str, error: OSError) -> Bad:
    return Bad("broken_compression", f"{path}: cannot be decompressed{after}: {error}")

"""JSON lines: a document a line."""

import json
from collections.abc import Iterator

from data.documents import Bad, Document
from data.sources.streams import about_bytes, lines
from data.sources.values import UTF16, broken_compression, decode, oversized, text_value, utf16, with_url
from data.spec import SourceSpec


def read_lines(
    path: str, source: SourceSpec, max_bytes: int, extent: tuple[int, int] | None = None
) -> Iterator[Document | Bad]:
    """
    Args:
        extent: the documents whose first byte lies in it; None: all.
    """
    number = 0
    try:
        for number, (where, line) in enumerate(lines(path, max_bytes + 1, extent), 1):
            if number == 1 and not (extent and extent[0]) and line.startswith(UTF16):
                yield utf16(path)
                return
            if len(line) > max_bytes and not line.endswith(b"\n"):
                yield oversized(where, max_bytes)
            elif line.strip():
                yield _parse(line, where, source)
    except OSError as error:
        if not about_bytes(error):
            raise
        yield broken_compression(path, f" after line {number}", error)


def _parse(line: bytes, where: str, source: SourceSpec) -> Document | Bad:
    decoded = decode(line, where, source)
    if isinstance(decoded, Bad):
        return decoded
    try:
        value = json.loads(decoded.text)
    except json.JSONDecodeError as error:
        return Bad("broken_json", f"{where}: not JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except ValueError as error:  # an integer of more digits than Python converts
        return Bad("broken_json", f"{where}: not JSON that can be read: {error}")
    except RecursionError:
        return Bad("broken_json", f"{where}: not JSON that can be read: it is nested too deep")
    if not isinstance(value, dict) or source.text_field not in value:
        has = f"it has {', '.join(sorted(value)[:8]) or 'none'}" if isinstance(value, dict) else "it is not an object"
        return Bad("no_text_field", f"{where}: no field {source.text_field!r}; {has}", "text_field")
    return with_url(text_value(value[source.text_field], where, source), value.get(source.url_field), where, source)

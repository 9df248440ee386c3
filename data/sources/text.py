"""Plain text and source code. A short file is one document, a long text many."""

from collections.abc import Iterator

from data.documents import Bad, Document
from data.sources.streams import COMPRESSED, about_bytes, lines, open_file
from data.sources.values import UTF16, broken_compression, decode, oversized, utf16
from data.spec import SourceSpec

# A longer text file is cut into pieces of at least the one at a blank line, or else of at least the other at a line's end, and
# before a line that would make a piece larger than a document may be.
_WHOLE_TEXT_BYTES = 64 * 1024
_PIECE_BYTES = 4 * 1024
_PIECE_BYTES_WITHOUT_BLANK_LINE = 64 * 1024


def read_text(
    path: str, size: int, source: SourceSpec, max_bytes: int, extent: tuple[int, int] | None = None
) -> Iterator[Document | Bad]:
    """
    Args:
        size: of the file as it lies, in bytes.
        extent: of a long text the pieces of the lines whose first byte lies in it; None: all.
    """
    try:
        if not _is_long(path, size, min(_WHOLE_TEXT_BYTES, max_bytes)):
            yield from read_code(path, source, max_bytes)
            return
    except OSError as error:
        if not about_bytes(error):
            raise
        yield broken_compression(path, "", error)
        return
    yield from _read_pieces(path, source, max_bytes, extent)


def _is_long(path: str, size: int, most: int) -> bool:
    if not path.endswith(COMPRESSED):
        return size > most
    with open_file(path) as stream:
        return len(stream.read(most + 1)) > most


def read_code(path: str, source: SourceSpec, max_bytes: int) -> Iterator[Document | Bad]:
    """One document, however long."""
    raw = read_whole(path, max_bytes)
    yield raw if isinstance(raw, Bad) else decode(raw, path, source)


def read_whole(path: str, max_bytes: int) -> bytes | Bad:
    try:
        with open_file(path) as stream:
            raw = stream.read(max_bytes + 1)
    except OSError as error:
        if not about_bytes(error):
            raise
        return broken_compression(path, "", error)
    return oversized(path, max_bytes) if len(raw) > max_bytes else raw


def _read_pieces(path: str, source: SourceSpec, max_bytes: int, extent: tuple[int, int] | None) -> Iterator[Document | Bad]:
    """A long text: the pieces' bytes, one after another, are the file's. A piece is named by its first line. What is refused is
    a line that is too large by itself."""
    piece, first, number = bytearray(), "", 0
    try:
        for number, (where, line) in enumerate(lines(path, max_bytes + 1, extent), 1):
            if number == 1 and not (extent and extent[0]) and line.startswith(UTF16):
                yield utf16(path)
                return
            if piece and len(piece) + len(line) > max_bytes:
                if piece.strip():
                    yield decode(bytes(piece), first, source)
                piece.clear()
                first = ""
            first = first or where
            piece += line
            if len(piece) > max_bytes:
                yield oversized(first, max_bytes)
            elif len(piece) >= (_PIECE_BYTES_WITHOUT_BLANK_LINE if line.strip() else _PIECE_BYTES):
                yield decode(bytes(piece), first, source)
            else:
                continue
            piece.clear()
            first = ""
    except OSError as error:
        if not about_bytes(error):
            raise
        yield broken_compression(path, f" after line {number}", error)
        return
    if piece.strip():
        yield decode(bytes(piece), first, source)

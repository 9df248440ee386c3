"""A file's documents, by its format."""

from collections.abc import Iterator

from data import stdlib
from data.documents import Bad, Document
from data.sources.lines import read_lines
from data.sources.listing import InputFile
from data.sources.parquet import read_parquet
from data.sources.streams import COMPRESSED, begins_with
from data.sources.text import read_code, read_text
from data.sources.values import UTF16, not_utf8, oversized
from data.sources.web import read_html, read_warc
from data.spec import SourceSpec


def read_file(file: InputFile, source: SourceSpec, max_bytes: int) -> Iterator[Document | Bad]:
    """The documents of one file, or of its extent, in order, and what is broken in it. Memory: one document, or what Parquet
    decodes at once.

    A broken document is a value (``Bad``), not an exception: who reads decides whether it stops the work or is counted.

    Args:
        max_bytes: a larger document, as it lies in the file, is bad; no more of it than this is ever in memory. A page of
            Parquet is decoded whole.

    Raises:
        OSError: the file has gone or its storage does not answer; another attempt may do better.
        SourceError: Arrow cannot read what a Parquet file holds. It has no pointer; the caller knows the source's.
    """
    name = file.path
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    if file.path.startswith(stdlib.PREFIX):
        yield from _read_stdlib(file, source, max_bytes)
    elif file.size == 0 or (file.extent is not None and file.extent[0] and begins_with(file.path, UTF16)):
        return  # that a file is in UTF-16 is said of its beginning
    elif name.endswith(".parquet"):
        yield from read_parquet(file.path, file.size, source, max_bytes, file.extent)
    elif name.endswith(".jsonl"):
        yield from read_lines(file.path, source, max_bytes, file.extent)
    elif name.endswith(".warc"):
        yield from read_warc(file.path, source, max_bytes)
    elif name.endswith((".html", ".htm")):
        yield from read_html(file.path, source, max_bytes)
    elif name.endswith(".txt"):
        yield from read_text(file.path, file.size, source, max_bytes, file.extent)
    else:
        yield from read_code(file.path, source, max_bytes)


def _read_stdlib(file: InputFile, source: SourceSpec, max_bytes: int) -> Iterator[Document | Bad]:
    try:
        for name, text in stdlib.texts(source.path, file.path.removeprefix(stdlib.PREFIX)):
            if len(text.encode()) > max_bytes:
                yield oversized(name, max_bytes)
            else:
                yield Document(text, name, source.language, source.domain)
    except UnicodeDecodeError as error:
        yield not_utf8(file.path, error)
    except SyntaxError as error:
        yield Bad("not_python", f"{file.path}:{error.lineno}: not Python: {error.msg}")

"""Parquet: a document a row, read a row group at a time in batches of rows."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.documents import Bad, Document
from data.errors import SourceError
from data.sources.streams import about_bytes, open_raw
from data.sources.values import not_utf8, oversized, text_value, with_url
from data.spec import SourceSpec

# Of rows in memory at once, of documents of average size.
_BATCH_ROWS = 256
_BATCH_BYTES = 4 * 2**20
_PAGE_BUFFER_BYTES = 1 << 20
_STRINGS = (pa.string(), pa.large_string(), pa.string_view())


def read_parquet(
    path: str, size: int, source: SourceSpec, max_bytes: int, extent: tuple[int, int] | None = None
) -> Iterator[Document | Bad]:
    """
    Args:
        size: of the file in bytes.
        extent: the row groups whose first byte lies in it; None: all.
    """
    start, end = extent or (0, size)
    row, parquet = 0, None
    with open_raw(path) as stream:
        try:
            # With a buffer, a column of a row group is read page by page and not whole.
            parquet = pq.ParquetFile(stream, buffer_size=_PAGE_BUFFER_BYTES)
            if bad := _missing(parquet.schema_arrow, path, source):
                if start == 0:
                    yield bad
                return
            for number in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(number)
                if not start <= min(_first_byte(group), size - 1) < end:
                    row += group.num_rows
                    continue
                for text, url in _rows(parquet, number, source, max_bytes):
                    row += 1
                    where = f"{path}:row {row}"
                    yield oversized(where, max_bytes) if text is None else _document(text, url, where, source)
        except pa.ArrowInvalid as error:
            if parquet is not None or start == 0:
                yield Bad("broken_parquet", f"{path}: not Parquet that can be read: {error}")
        except pa.ArrowException as error:
            raise SourceError(f"{path} cannot be read as Parquet after row {row}: {error}") from error
        except OSError as error:
            if not about_bytes(error):
                raise
            yield Bad("broken_parquet", f"{path}: unreadable after row {row}: {error}")


def _first_byte(group: pq.RowGroupMetaData) -> int:
    chunk = group.column(0)
    # Some writers state a dictionary's place as 0 where there is none.
    return int(chunk.dictionary_page_offset or chunk.data_page_offset)


def _rows(
    parquet: pq.ParquetFile, number: int, source: SourceSpec, max_bytes: int
) -> Iterator[tuple[pa.Scalar | None, pa.Scalar | None]]:
    """Text, or None where it is too large, and address of each row of a row group."""
    group = parquet.metadata.row_group(number)
    chunks = [group.column(column) for column in range(group.num_columns)]
    size = next(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == source.text_field)
    most = max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(size, 1)))
    columns = [name for name in (source.text_field, source.url_field) if name is not None]
    for batch in parquet.iter_batches(batch_size=most, row_groups=[number], columns=columns):
        urls = [None] * len(batch) if source.url_field is None else _values(batch, source.url_field)
        texts = _values(batch, source.text_field)
        sizes = pc.binary_length(texts).fill_null(0).to_pylist()
        for row, (size, url) in enumerate(zip(sizes, urls, strict=True)):
            # Taking a value out of its array copies it.
            yield (texts[row] if size <= max_bytes else None), url


def _missing(schema: Any, path: str, source: SourceSpec) -> Bad | None:
    """What keeps every row from being a document."""
    for field in ("text_field", "url_field"):
        name = getattr(source, field)
        if name is None:
            continue
        if name not in schema.names:
            return Bad(f"no_{field}", f"{path}: no column {name!r}; it has {', '.join(schema.names[:8])}", field)
        if schema.names.count(name) > 1:
            return Bad(f"no_{field}", f"{path}: two columns {name!r}", field)
        kind = schema.field(name).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        empty = field == "url_field" and pa.types.is_null(kind)
        if not (empty or plain in _STRINGS):
            return Bad("not_text", f"{path}: column {name!r} is {kind}, not text", field)
    return None


def _values(batch: Any, name: str) -> Any:
    values = batch.column(batch.schema.names.index(name))
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    # Of views Arrow cannot say how long they are.
    return values.cast(pa.large_string()) if pa.types.is_string_view(values.type) else values


def _document(text: Any, url: Any, where: str, source: SourceSpec) -> Document | Bad:
    try:
        document = text_value(text.as_py(), where, source)
        return with_url(document, None if url is None else url.as_py(), where, source)
    except UnicodeDecodeError as error:
        return not_utf8(where, error)

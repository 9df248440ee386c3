"""Documents that were dropped, kept aside in the prepared data set (``dropped/*.parquet``) with what took them and why.

What a stage drops is written while documents are cleaned, beside the part; ``data/aside.py`` writes
what deduplication and decontamination drop. Personal data is left out.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.documents import Document
from data.files import atomic
from data.stages.base import Drop

FOLDER = "dropped"

SCHEMA = pa.schema(
    [
        ("text", pa.large_string()),  # as it came to the stage; null where it is confidential, as the address is
        *((name, pa.string()) for name in ("id", "url", "language", "domain", "stage", "reason", "detail")),
        ("grade", pa.int8()),  # null where no stage had judged it
        ("other_id", pa.string()),  # the document that is kept in its place, or what it overlaps
        ("confidential", pa.bool_()),
    ]
)
# Of text in memory before it is written.
_ROOM_BYTES = 4 * 2**20


class DroppedWriter:
    """See ``dropped_writer``."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path, self._stack = path, stack
        self._parquet: pq.ParquetWriter | None = None
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def __call__(self, stage: str, drop: Drop, document: Document, other_id: str | None = None) -> None:
        origin = {name: getattr(document, name) or None for name in ("id", "url", "language", "domain")}
        reason = {"stage": stage, "reason": drop.reason, "detail": drop.detail, "confidential": drop.confidential}
        text: str | None = document.text
        if drop.confidential:
            text, origin["url"] = None, None
        self._rows.append({"text": text, **origin, **reason, "grade": document.grade, "other_id": other_id})
        self._bytes += len(document.text) + 256
        if self._bytes >= _ROOM_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._rows:
            return
        if self._parquet is None:
            file = self._stack.enter_context(atomic(self._path))
            self._parquet = self._stack.enter_context(pq.ParquetWriter(file, SCHEMA, compression="zstd"))
        self._parquet.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
        self._rows, self._bytes = [], 0


@contextmanager
def dropped_writer(path: Path) -> Iterator[DroppedWriter]:
    """Takes dropped documents. The Parquet file is there when the block has ended well, if there were any."""
    with ExitStack() as stack:
        writer = DroppedWriter(path, stack)
        yield writer
        writer.flush()


def dropped_beside(part: Path) -> Path:
    """Where what the stages dropped lies, if anything was."""
    return part.with_suffix(".dropped.parquet")


def gather_dropped(parts: Sequence[Path], folder: Path) -> None:
    """Puts what the stages dropped into the data set. What is there already stays."""
    for index, part in enumerate(parts):
        source, target = dropped_beside(part), folder / f"stages-{index:06}.parquet"
        if source.is_file() and not target.exists():
            folder.mkdir(exist_ok=True)
            _link(source, target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        with source.open("rb") as content, atomic(target) as file:
            shutil.copyfileobj(content, file)

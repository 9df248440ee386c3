"""The step that turns cleaned documents into rows: tokenise some of one split and cell, hold them to the limits, write shards.

A pure function of its task and the files it names, like the steps of ``data/tasks.py``; its marker is written last.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from data.errors import NotEnoughData
from data.files import atomic, checksum, write_atomically
from data.manifest import DocumentsFile, ShardInfo, Split
from data.report import Histogram, TextFigures
from data.shards import write_shard
from data.spec import MARKS, DataSpec, DocumentTokens
from data.stages.base import EXAMPLES, DroppedExample, StageCount
from data.stages.excerpt import excerpt
from data.tasks import PART, Rows, read_rows, with_scores
from data.tokenizer import BYTE, UNKNOWN, Tokenizer

LIMITS = "document_tokens"
_ENCODED_TOGETHER = 256
# What a part says of a document beside its text, and goes into the Parquet of those kept.
_ORIGIN = [name for name in PART.names if name not in ("text", "hash", "bytes")]
_KEPT = pa.schema(
    [
        *(PART.field(name) for name in ("text", *_ORIGIN)),
        *((name, pa.string()) for name in ("domain", "cell", "split")),
        ("tokens", pa.int32()),
    ]
)
"""Behind these there is a column a score."""

Tokens = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class PackTask:
    """Some documents of one split, segment and cell."""

    index: int
    directory: Path
    """Where the data set grows."""
    name: str
    """Of what is written, without folder and ending."""
    marker: Path
    split: Split
    cell: int
    cell_name: tuple[str, str]
    """Language and domain."""
    documents: tuple[tuple[Path, Rows], ...]
    """Parts, and the rows to take of each, ascending."""
    tokenizer: Path
    tokenizer_checksum: str
    segments: tuple[int, ...]
    row_lengths: tuple[int, ...]
    """Of each of ``segments``, rising: where there are several, each piece of a document goes to the shortest that holds it."""
    align: int
    one_document: bool
    limits: DocumentTokens
    keep_documents: bool
    scores: tuple[str, ...] = ()
    """Columns of the parts beside ``PART``'s."""

    @property
    def size(self) -> int:
        return sum(len(rows) for _, rows in self.documents)


@dataclass(frozen=True, slots=True)
class PackResult:
    index: int
    cell: int
    shards: tuple[ShardInfo, ...]
    figures: TextFigures
    """Of the documents that are within the limits."""
    limits: StageCount | None
    """What the limits in tokens saw and dropped; None where there are none."""
    documents: DocumentsFile | None = None


_PACK_RESULT = TypeAdapter(PackResult)


@dataclass(slots=True)
class _Document:
    text: str
    bytes: int
    origin: tuple[Any, ...]
    """Where something asks for it."""
    ids: Tokens
    """Begin and end marks among them."""

    @property
    def tokens(self) -> int:
        return len(self.ids) - MARKS


def pack_documents(task: PackTask) -> PackResult:
    """Writes one shard for each row length. Each document is ``begin, tokens, end``."""
    if task.marker.is_file():
        return _PACK_RESULT.validate_json(task.marker.read_bytes())
    tokenizer = _tokenizer(task.tokenizer, task.tokenizer_checksum)
    limits = StageCount(LIMITS)
    pieces: list[list[Tokens]] = []
    lengths: list[int] = []
    kinds = np.zeros(3, np.int64)
    size = 0
    with ExitStack() as stack:
        keeper = stack.enter_context(_Keeper(task)) if task.keep_documents else None
        documents = _within(task.limits, _documents(task, tokenizer), limits)
        while batch := list(islice(documents, _ENCODED_TOGETHER)):
            if keeper is not None:
                keeper.write(batch)
            for document in batch:
                pieces.append(cut(document.ids, task.limits.max))
                lengths.append(document.tokens)
                kinds += np.bincount(tokenizer.kind_V[document.ids[1:-1]], minlength=3)
                size += document.bytes
    figures = TextFigures(
        bytes=size,
        tokens=int(kinds.sum()),
        unknown=int(kinds[UNKNOWN]),
        byte_pieces=int(kinds[BYTE]),
        lengths=Histogram.of(lengths),
    )
    kept = None if keeper is None else DocumentsFile(file=keeper.file, documents=len(lengths), checksum=checksum(keeper.path))
    counted = limits if task.limits.limited else None
    result = PackResult(task.index, task.cell, _shards(task, pieces), figures, counted, kept)
    write_atomically(task.marker, _PACK_RESULT.dump_json(result))
    return result


def _documents(task: PackTask, tokenizer: Tokenizer) -> Iterator[_Document]:
    origin_too = [*_ORIGIN, *task.scores] if task.keep_documents or task.limits.limited else []
    rows = (row for part, rows in task.documents for row in read_rows(part, rows, "text", *origin_too))
    while batch := list(islice(rows, _ENCODED_TOGETHER)):
        for (text, *origin), ids in zip(batch, tokenizer.encode_batch([row[0] for row in batch]), strict=True):
            marked = np.empty(len(ids) + MARKS, np.uint32)
            marked[0], marked[1:-1], marked[-1] = tokenizer.bos_id, ids, tokenizer.eos_id
            yield _Document(text, len(text.encode()), tuple(origin), marked)


def _within(limits: DocumentTokens, documents: Iterator[_Document], count: StageCount) -> Iterator[_Document]:
    """Without documents that are too short or, where those are not cut, too long; ``count`` takes in what came and went."""
    for document in documents:
        count.documents += 1
        count.bytes += document.bytes
        if reason := limits.reason(document.tokens):
            count.drops[reason] = count.drops.get(reason, 0) + 1
            shown = count.examples.setdefault(reason, [])
            if len(shown) < EXAMPLES:
                id_, language = (document.origin[_ORIGIN.index(name)] for name in ("id", "language"))
                shown.append(DroppedExample(id_, str(document.tokens), excerpt(document.text, language)))
        else:
            yield document


def cut(ids: Tokens, most: int | None) -> list[Tokens]:
    """A document with its marks in the fewest pieces of at most ``most`` tokens, marks among them, all about as long."""
    if most is None or len(ids) <= most:
        return [ids]
    count = -(-len(ids) // most)
    return np.split(ids, [len(ids) * i // count for i in range(1, count)])


def _shards(task: PackTask, documents: list[list[Tokens]]) -> tuple[ShardInfo, ...]:
    """Pieces longer than the longest row are cut once more where rows have several lengths, so that their rests find theirs."""
    longest = task.row_lengths[-1]
    by_length: list[list[Tokens]] = [[] for _ in task.row_lengths]
    begun = [0] * len(task.row_lengths)
    for pieces in documents:
        parts = pieces
        if len(task.row_lengths) > 1:
            parts = [piece[start : start + longest] for piece in pieces for start in range(0, len(piece), longest)]
        places = [bisect_left(task.row_lengths[:-1], len(part)) for part in parts]
        for place, part in zip(places, parts, strict=True):
            by_length[place].append(part)
        begun[places[0]] += 1
    return tuple(
        write_shard(
            *(task.directory, f"shards/{task.split}-{segment:02}-{task.name}.u32", parts),
            split=task.split,
            cell=task.cell,
            row_length=row_length,
            segment=segment,
            align=task.align,
            one_document=task.one_document,
            begun=begun_here,
        )
        for segment, row_length, parts, begun_here in zip(task.segments, task.row_lengths, by_length, begun, strict=True)
        if parts
    )


class _Keeper:
    """Writes the documents kept as Parquet, in row groups of as many as come at once."""

    def __init__(self, task: PackTask) -> None:
        self.task = task
        self.file = f"documents/{task.split}-{task.segments[-1]:02}-{task.name}.parquet"
        self.path = task.directory / self.file
        self._schema = with_scores(_KEPT, task.scores)
        self._stack = ExitStack()

    def __enter__(self) -> "_Keeper":
        stream = self._stack.enter_context(atomic(self.path))
        self._writer = self._stack.enter_context(pq.ParquetWriter(stream, self._schema, compression="zstd"))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, documents: list[_Document]) -> None:
        (language, domain), split = self.task.cell_name, self.task.split
        origin = list(zip(*(document.origin for document in documents), strict=True))
        columns = [
            [document.text for document in documents],
            *origin[: len(_ORIGIN)],
            *([value] * len(documents) for value in (domain, f"{language}/{domain}", split)),
            [document.tokens for document in documents],
            *origin[len(_ORIGIN) :],
        ]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))


def limits_of(packed: Iterable[PackResult]) -> tuple[StageCount, ...]:
    """The step of the funnel that limits in tokens are; empty where there are none."""
    counts = [result.limits for result in packed if result.limits is not None]
    whole = StageCount(LIMITS)
    for count in counts:
        whole.add(count)
    return (whole,) if counts else ()


def require_cells(data: DataSpec, packed: Sequence[PackResult]) -> None:
    """
    Raises:
        NotEnoughData: the limits in tokens took all that a cell had to train on, or had for a part of the curriculum, or all
            that was held out.
    """
    names, segments = list(data.cells), range(len(data.segments))
    shards = [info for result in packed for info in result.shards if info.rows]
    train = {(info.cell, 0 if data.length_buckets else info.segment) for info in shards if info.split == "train"}
    empty = [cell for cell in range(len(names)) if any((cell, segment) not in train for segment in segments)]
    for cell in empty:
        took = ", ".join(
            f"{n} {why}" for each in limits_of(r for r in packed if r.cell == cell) for why, n in each.drops.items()
        )
        raise NotEnoughData(
            f"document_tokens takes every document that {'/'.join(names[cell])} has to train on"
            f"{' in a part of the curriculum' if data.curriculum else ''} ({took}){data.without(empty)}",
            pointer=f"/data_pipeline/{LIMITS}",
        )
    if not any(info.split == "held_out" for info in shards):
        raise NotEnoughData("document_tokens takes every document that is held out", pointer=f"/data_pipeline/{LIMITS}")


@lru_cache(maxsize=1)
def _tokenizer(path: Path, checksum: str) -> Tokenizer:
    """One tokenizer a process; the checksum is in the key because paths are used again."""
    return Tokenizer.load(path)

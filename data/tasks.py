"""The step that reads documents: some files of one source are cleaned, on many machines at once.

It is a pure function of its task and the files it names, and writes the same bytes wherever it runs. A marker, written last,
spares a repeated task its work; a stopped preparation goes on where it was.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import TypeAdapter, ValidationError

from data.dedup.shingles import shingle_hashes
from data.dedup.signatures import make_method, signature_path
from data.dedup.spec import NearSpec
from data.documents import Bad, Document
from data.dropped import dropped_beside, dropped_writer
from data.errors import DocumentError, SourceError
from data.files import U64, atomic, checksum, write_atomically
from data.report import Amount
from data.selection import Ints, text_hash
from data.sources import InputFile, read_file, require_unchanged
from data.spec import SourceSpec
from data.stages.base import Drop, OnDrop, Stage, StageCount, clean
from data.stages.registry import StageSpec, make_stage, score_names

PART = pa.schema(
    [
        *(("text", pa.large_string()), ("hash", pa.uint64()), ("bytes", pa.int64())),
        *((name, pa.string()) for name in ("id", "url", "language")),
        ("grade", pa.int8()),
    ]
)
"""Behind these there is a column a score, where a stage scores."""
# What is in memory at once of a part that is written: documents, and bytes of text (or one document that has more).
_BATCH_DOCUMENTS = 4096
_BATCH_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class CleanTask:
    """Read, normalise and filter some files of one source."""

    index: int
    part: Path
    """The Arrow file to write; its marker lies beside it."""
    files: tuple[InputFile, ...]
    source: SourceSpec
    pointer: str
    """Where the source stands in the job spec: ``/data_pipeline/sources/0``."""
    stages: tuple[StageSpec, ...]
    max_document_bytes: int
    drop_bad: bool
    near: NearSpec | None = None
    """How near duplicates are found: signatures are written beside the part."""
    keep_dropped: bool = False
    """Whether dropped documents are written beside the part too."""

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class CleanResult:
    index: int
    sources: StageCount = field(default_factory=lambda: StageCount("sources"))
    """What was read; drops are what the source held in place of documents."""
    stages: tuple[StageCount, ...] = ()
    languages: dict[str, Amount] = field(default_factory=dict)
    """What is left, by the language that the last stage left it in."""
    read: tuple[int, ...] = ()
    """Documents, broken ones among them, of each file or extent."""

    @property
    def kept(self) -> int:
        return sum(amount.documents for amount in self.languages.values())


@dataclass(frozen=True, slots=True)
class _Marker:
    """Says that a task is done."""

    checksums: dict[str, str]
    """Of the files that it wrote and of ``result``, by the suffixes behind the part's stem."""
    result: CleanResult


_STAGES: TypeAdapter[tuple[StageSpec, ...]] = TypeAdapter(tuple[StageSpec, ...])
_MARKER = TypeAdapter(_Marker)
_RESULT = TypeAdapter(CleanResult)


def clean_files(task: CleanTask) -> CleanResult:
    """Writes ``task.part``: the documents that are left, with the hash that decides over duplicates and splits.

    Raises:
        DocumentError: a document is broken and broken ones are not dropped; the message names file and line.
        SourceError: a file changed while it was read, or cannot be read at all.
        OSError: a file has gone or its storage does not answer. Nothing is marked as done, so a later attempt goes on here.
    """
    marker = task.part.with_suffix(".json")
    if (done := _done(marker)) is not None:
        return replace(done, index=task.index)
    sources = StageCount("sources")
    read = [0] * len(task.files)
    counts = tuple(StageCount(spec.stage) for spec in task.stages)

    def documents(on_drop: OnDrop | None) -> Iterator[Document]:
        for number, item in _read(task):
            read[number] += 1
            sources.documents += 1
            if isinstance(item, Document):
                sources.bytes += len(item.text.encode())
                yield item
            elif task.drop_bad or item.tolerated:
                nothing = Document("", "", task.source.language, task.source.domain)
                sources.drop(Drop(item.reason, item.detail), nothing)
                if on_drop is not None:
                    on_drop(sources.stage, Drop(item.reason, item.detail), nothing)
            else:
                raise DocumentError(item.detail, pointer=_pointer(task, item.field))

    aside = dropped_writer(dropped_beside(task.part)) if task.keep_dropped else nullcontext()
    with aside as on_drop:
        seen = [number for number, spec in enumerate(task.stages) if spec.sees(task.source.domain)]
        stages = _stages(tuple(task.stages[number] for number in seen))
        cleaned = clean(documents(on_drop), stages, [counts[number] for number in seen], on_drop)
        languages = _write_part(task.part, cleaned, task.near, score_names(task.stages))
    result = CleanResult(task.index, sources, counts, languages, tuple(read))
    write_atomically(marker, _MARKER.dump_json(_Marker(_checksums(task.part, result), result)))
    return result


def _done(marker: Path) -> CleanResult | None:
    """What a marker says, if the files beside it are still those that were written: they may outlive many preparations, and
    what is damaged is made again."""
    try:
        said = _MARKER.validate_json(marker.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return said.result if said.checksums == _checksums(marker.with_suffix(".arrow"), said.result) else None


def _checksums(part: Path, result: CleanResult) -> dict[str, str]:
    files = (part, signature_path(part), dropped_beside(part))
    found = {file.name.removeprefix(part.stem): checksum(file) for file in files if file.is_file()}
    return found | {".json": xxhash.xxh3_128_hexdigest(_RESULT.dump_json(result))}


def _stages(specs: tuple[StageSpec, ...]) -> tuple[Stage, ...]:
    return _stages_of(_STAGES.dump_json(specs))


@lru_cache(maxsize=1)
def _stages_of(specs: bytes) -> tuple[Stage, ...]:
    """Made once a process: some load lists or models."""
    return tuple(make_stage(spec) for spec in _STAGES.validate_json(specs))


def _read(task: CleanTask) -> Iterator[tuple[int, Document | Bad]]:
    """With the number of the file."""
    for number, file in enumerate(task.files):
        try:
            for item in read_file(file, task.source, task.max_document_bytes):
                if isinstance(item, Bad) and not (task.drop_bad or item.tolerated):
                    require_unchanged(file)  # what somebody writes to is torn, and that is what to say
                yield number, item
            require_unchanged(file)
        except SourceError as error:
            raise SourceError(error.detail, pointer=_pointer(task, "path")) from error


def _pointer(task: CleanTask, name: str) -> str:
    if name == "max_document_bytes":
        return "/data_pipeline/max_document_bytes"
    return f"{task.pointer}/{name}"


def with_scores(schema: pa.Schema, scores: Iterable[str]) -> pa.Schema:
    return pa.schema([*schema, *((name, pa.float32()) for name in scores)])


def _write_part(path: Path, documents: Iterator[Document], near: NearSpec | None, scores: Sequence[str]) -> dict[str, Amount]:
    """What was written, by language."""
    schema = with_scores(PART, scores)
    number: Counter[str] = Counter()
    size: Counter[str] = Counter()
    with ExitStack() as stack:
        signatures = stack.enter_context(atomic(signature_path(path))) if near is not None else None
        writer = stack.enter_context(pa.ipc.new_file(stack.enter_context(atomic(path)), schema))
        for batch, sizes in _batches(documents):
            texts = [document.text for document in batch]
            hashes = [text_hash(text) for text in texts]
            origins = [[getattr(document, name) for document in batch] for name in ("id", "url", "language", "grade")]
            measured = [[(document.scores or {}).get(name) for document in batch] for name in scores]
            writer.write_batch(pa.record_batch([texts, hashes, sizes, *origins, *measured], schema=schema))
            if near is not None and signatures is not None:
                signatures.write(_sign(batch, near))
            for document, bytes_ in zip(batch, sizes, strict=True):
                number[document.language] += 1
                size[document.language] += bytes_
    return {language: Amount(documents=number[language], bytes=size[language]) for language in sorted(number)}


def _batches(documents: Iterable[Document]) -> Iterator[tuple[list[Document], list[int]]]:
    """Documents, and the bytes of each."""
    batch: list[Document] = []
    sizes: list[int] = []
    room = _BATCH_BYTES
    for document in documents:
        batch.append(document)
        sizes.append(len(document.text.encode()))
        room -= sizes[-1]
        if room <= 0 or len(batch) == _BATCH_DOCUMENTS:
            yield batch, sizes
            batch, sizes, room = [], [], _BATCH_BYTES
    if batch:
        yield batch, sizes


def _sign(documents: list[Document], near: NearSpec) -> bytes:
    shingles = [shingle_hashes(document.text, near.ngram) for document in documents]
    return make_method(near).sign(shingles).tobytes()


def read_index(part: Path) -> Iterator[tuple[U64, Ints]]:
    """Hashes and sizes in bytes of a part's documents, some at a time; the text stays on disk."""
    with pa.memory_map(str(part)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            yield batch.column("hash").to_numpy(), batch.column("bytes").to_numpy()


@dataclass(frozen=True, slots=True)
class Rows:
    """Ascending rows of a part, a bit for each between the first and the last: all tasks together are small beside a corpus."""

    first: int
    bits: bytes
    count: int

    @staticmethod
    def of(rows: Ints) -> "Rows":
        """
        Args:
            rows: one at least.
        """
        bits = np.zeros(rows[-1] - rows[0] + 1, np.bool_)
        bits[rows - rows[0]] = True
        return Rows(int(rows[0]), np.packbits(bits).tobytes(), len(rows))

    def __len__(self) -> int:
        return self.count

    def numbers(self) -> Ints:
        numbers: Ints = self.first + np.flatnonzero(np.unpackbits(np.frombuffer(self.bits, np.uint8)))
        return numbers


def read_texts(part: Path, rows: Ints | Rows | Sequence[int]) -> Iterator[str]:
    """The texts of some rows of a part, ascending."""
    return (text for (text,) in read_rows(part, rows, "text"))


def read_rows(part: Path, rows: Ints | Rows | Sequence[int], *columns: str) -> Iterator[tuple[Any, ...]]:
    """Columns of some rows of a part, ascending; only the record batches that hold them are touched."""
    rows_K = rows.numbers() if isinstance(rows, Rows) else np.asarray(rows, np.int64)
    with pa.memory_map(str(part)) as source:
        reader = pa.ipc.open_file(source)
        start_B = _batch_starts(part, part.stat().st_mtime_ns)
        borders = np.searchsorted(rows_K, start_B)
        for number in np.flatnonzero(np.diff(borders)).tolist():
            batch = reader.get_batch(number)
            values = [batch.column(column) for column in columns]
            for row in (rows_K[borders[number] : borders[number + 1]] - start_B[number]).tolist():
                yield tuple(value[row].as_py() for value in values)


@lru_cache(maxsize=256)
def _batch_starts(part: Path, mtime_ns: int) -> Ints:
    """The first row of each record batch, and the end. The tasks that read a part ask again and again."""
    with pa.memory_map(str(part)) as source:
        reader = pa.ipc.open_file(source)
        return np.cumsum([0, *(reader.get_batch(number).num_rows for number in range(reader.num_record_batches))])

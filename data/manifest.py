"""What a prepared data set says of itself. It is written last: a directory without it is not a data set."""

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from data.errors import NotEnoughData, ShardError
from data.files import checksum

FILE_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.model"
REPORT_NAME = "report.json"
INPUTS_NAME = "inputs.json"
FORMAT = 7
"""Part of every data set's identity; raise it when the same input no longer gives the same bytes."""

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, Split] = ("train", "held_out")


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Count(Record):
    """How much of a cell is in one split. ``tokens`` counts begin and end marks, not padding."""

    documents: int = 0
    tokens: int = 0
    rows: int = 0


class Cell(Record):
    """One (language, domain). Its weight, relative to the others, is its share of every batch: the sum of its sources', or
    what the mixture gives it."""

    language: str
    domain: str
    weight: float
    counts_as: tuple[str, str] | None = None
    """The language and the domain whose targets in the mixture it goes to; None: its own."""
    train: Count
    held_out: Count

    @property
    def name(self) -> str:
        return f"{self.language}/{self.domain}"

    @property
    def lines(self) -> tuple[str, str]:
        """The language and the domain whose shares of every batch it is part of."""
        return self.counts_as or (self.language, self.domain)


class Segment(Record):
    """A part of the run with rows of one length: of the curriculum, or a length bucket; without either there is one."""

    sequence_length: int
    fraction: float
    cells: tuple[Count, ...]
    """What it trains on, by cell."""

    @property
    def rows(self) -> int:
        return sum(cell.rows for cell in self.cells)


class ShardInfo(Record):
    """One file of packed rows. Layout, little-endian uint32: ``tokens[rows, T]``, ``row_start[rows + 1]``,
    ``piece_length[pieces]``; row r holds the pieces ``row_start[r] .. row_start[r + 1]`` from its left edge on, each beginning
    at the next multiple of the manifest's ``document_alignment``."""

    file: str
    split: Split
    cell: int
    segment: int
    """Of the curriculum, whose row length it has; for held-out rows the last."""
    documents: int
    rows: int
    pieces: int
    tokens: int
    checksum: str
    """xxh3-128 of the file."""


class DocumentsFile(Record):
    """A Parquet file of the documents that were kept: text, where it came from, and what it counts as."""

    file: str
    documents: int
    checksum: str
    """xxh3-128 of the file."""


class Manifest(Record):
    """Rows of a split are numbered through its shards in the order of ``shards``, which is by segment, then cell."""

    format: int = FORMAT
    hash: str
    """Identity of the input: spec, files, versions. The directory's name."""
    sequence_length: int
    chain_segments: int = 1
    """A row is a chain of this many segments of ``sequence_length`` tokens."""
    document_alignment: int = 1
    """Pieces begin at multiples of this many tokens in their row."""
    bucketed: bool = False
    """Segments are length buckets, which the steps of a run take turns in; else they follow each other."""
    vocab_size: int
    vocab_size_asked: int | None = None
    """What the tokenizer was trained for: its sample may have held fewer pieces. None: an existing one was taken."""
    bos_id: int
    eos_id: int
    tokenizer_checksum: str
    classifiers: dict[str, str] = {}
    """Checksums of what stages have learned, by the stage's place: ``stages/3``."""
    report_checksum: str = ""
    """Of ``report.json``."""
    inputs_checksum: str = ""
    """Of ``inputs.json``."""
    cells: tuple[Cell, ...]
    segments: tuple[Segment, ...]
    shards: tuple[ShardInfo, ...]
    documents_files: tuple[DocumentsFile, ...] = ()
    """Where documents were asked for."""
    input_files: int
    input_bytes: int
    documents_read: int
    drops: dict[str, int]
    """Documents that were left out, by reason."""
    unigram_loss: float
    bigram_loss: float
    """Held-out loss of n-gram models of the training split, nats a token, at the positions that a model predicts."""

    def row_length(self, segment: int = -1) -> int:
        """Tokens in a row of a segment of the curriculum (the last, as held-out rows)."""
        return self.segments[segment].sequence_length * self.chain_segments

    @property
    def row_lengths(self) -> list[int]:
        """Tokens in a training row, by segment."""
        return [self.row_length(segment) for segment in range(len(self.segments))]

    def rows(self, split: Split) -> int:
        return sum(shard.rows for shard in self.shards if shard.split == split)

    def tokens(self, split: Split) -> int:
        return sum(shard.tokens for shard in self.shards if shard.split == split)

    def documents(self, split: Split) -> int:
        return sum(shard.documents for shard in self.shards if shard.split == split)

    def cell_rows(self, split: Split, segment: int = -1) -> list[range]:
        """The numbers of each cell's rows in a split, of one segment (the last)."""
        ranges, start = [range(0)] * len(self.cells), 0
        for shard in (shard for shard in self.shards if shard.split == split):
            stop = start + shard.rows
            if shard.segment == segment % len(self.segments):
                ranges[shard.cell] = range(ranges[shard.cell].start if ranges[shard.cell] else start, stop)
            start = stop
        return ranges

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """
        Raises:
            ShardError: there is none, or it cannot be understood.
        """
        path = directory / FILE_NAME
        try:
            manifest = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise ShardError(
                f"{directory} is not a prepared data set: it has no {FILE_NAME}; delete it to prepare again"
            ) from error
        except ValidationError as error:
            raise ShardError(f"{path} is not a manifest of this version: {error.errors()[0]['msg']}") from error
        if manifest.format != FORMAT:
            raise ShardError(f"{path} has format {manifest.format}, and this version reads {FORMAT}; prepare the data again")
        return manifest


def require_rows(manifest: Manifest, global_batch_size: int) -> None:
    """
    Raises:
        NotEnoughData: the training documents of a segment do not fill one global batch, or nothing is held out.
    """
    for number, segment in enumerate(manifest.segments):
        needed = 0 if manifest.bucketed else global_batch_size * manifest.sequence_length // segment.sequence_length
        if segment.rows < needed:
            documents = sum(cell.documents for cell in segment.cells)
            raise NotEnoughData(
                f"{documents} training documents fill {segment.rows} rows of {manifest.row_length(number)} tokens,"
                f" fewer than one global batch of {needed}; give more text, or a smaller global_batch_size",
                pointer="/training/global_batch_size",
            )
    if not manifest.rows("held_out"):
        raise NotEnoughData("no document is held out to measure on", pointer="/data_pipeline/held_out_fraction")


R = TypeVar("R", bound=Record)


def read_companion(kind: type[R], path: Path, stated: str) -> R:
    """A JSON file beside the manifest, whose checksum there is ``stated``.

    Raises:
        ShardError: there is no such file, it does not match the checksum, or it is of another version.
    """
    try:
        if checksum(path) != stated:
            raise ShardError(f"{path} does not match the checksum in the manifest: it is torn, or was edited")
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ShardError(f"{path.parent} has no {path.name}") from error
    except ValidationError as error:
        raise ShardError(f"{path} is not of this version: {error.errors()[0]['msg']}") from error

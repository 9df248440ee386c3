"""What the data room executes: sources, cleaning, tokenizer, packing. Pydantic and nothing heavy is imported here."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from data.dedup.spec import DeduplicateSpec, ExactSpec, given_deduplicate
from data.spec_base import Misfit, Seed, Spec, Weight
from data.stages.registry import PRESETS, StageSpec, given_stages


class SourceSpec(Spec):
    """One place that documents come from."""

    path: str
    """A path or glob (``.txt .jsonl .jsonl.gz .jsonl.zst .parquet .py``), local or ``s3://``, ``gs://``; or
    ``stdlib:prose`` and ``stdlib:code``, the text that every Python installation carries. A ``.txt`` file is one document, or,
    over 64 KiB, many: one ends at the first blank line after 4 KiB, or else at the first line's end after 64 KiB."""
    text_field: str = "text"
    """The field that holds the text, in JSON lines and Parquet."""
    url_field: str | None = None
    """The field that holds the address where a document was found, for rules about addresses. A document may lack it."""
    language: str = "en"
    domain: str = "web"
    weight: Weight = 1.0
    """What this source adds to the share of its (language, domain) cell in every global batch, relative to the other cells.
    Sources of one cell add their weights up; within the cell they are mixed by the size of their text."""


def _stdlib() -> tuple[SourceSpec, ...]:
    return (
        SourceSpec(path="stdlib:prose", domain="prose", weight=0.5),
        SourceSpec(path="stdlib:code", domain="code", weight=0.5),
    )


class CurriculumSegment(Spec):
    """A part of the run in which rows have one length."""

    sequence_length: int = Field(ge=8)
    fraction: float = Field(gt=0, le=1)
    """Share of the run's tokens."""


class DataSpec(Spec):
    """From documents to packed rows."""

    sources: tuple[SourceSpec, ...] = Field(default_factory=_stdlib, min_length=1)
    sequence_length: int = Field(default=256, ge=8, le=1_048_576)
    """Tokens in a packed row. A row holds documents of one (language, domain) cell; attention never crosses their borders."""
    curriculum: tuple[CurriculumSegment, ...] = ()
    """Shorter rows first: each segment's length and share of the run's tokens, the last one's length being ``sequence_length``.
    A step has as many tokens in every segment: ``global_batch_size`` counts rows of ``sequence_length``. Each document belongs
    to one segment, by hash and in proportion. Empty: all rows have ``sequence_length``."""
    chain_segments: int = Field(default=1, ge=1)
    """Rows are this many times ``sequence_length`` long, for a model that reads them a segment at a time and remembers the ones
    before (Transformer-XL): a document of a row is a chain of consecutive segments. Documents shorter than a row share it, as
    without chains; with ``document_alignment`` equal to ``sequence_length`` each segment holds one document only."""
    document_alignment: int = Field(default=1, ge=1)
    """Documents begin at multiples of this many tokens in their row, for attention that works in blocks (``hierarchical``);
    the gaps are padding. Divides every sequence length."""
    stages: Annotated[tuple[StageSpec, ...], BeforeValidator(given_stages)] = PRESETS["quickstart"]  # type: ignore[assignment]
    """What each document goes through, in order, before deduplication: a list of stages with their settings, or a preset
    (``quickstart``, ``web``, ``papers``, ``code``, ``none``). What a stage drops is in the report, with its reason."""
    max_document_bytes: int = Field(default=16 * 2**20, ge=1)
    """A larger document is a bad document: see ``on_bad_document``."""
    on_bad_document: Literal["error", "drop"] = "error"
    """Broken UTF-8, a missing field, a broken JSON line, an oversized document: stop with its file and line, or drop it and
    say so in the report."""
    deduplicate: Annotated[DeduplicateSpec | None, BeforeValidator(given_deduplicate)] = ExactSpec()
    """Of documents that are the same, or nearly, one is kept: ``exact`` (or ``true``), ``simhash``, ``minhash``, or a method
    with its settings; ``false`` keeps all. Documents of one cluster are never on both sides of the held-out split."""
    held_out_fraction: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of documents, by hash of the text of their cluster, that training never sees."""
    shard_documents: int = Field(default=512, ge=1)
    """Documents in one unit of work; part of the prepared data's identity."""
    seed: Seed = 0

    @property
    def segments(self) -> tuple[CurriculumSegment, ...]:
        """The curriculum; without one, a single segment."""
        return self.curriculum or (CurriculumSegment(sequence_length=self.sequence_length, fraction=1.0),)

    @property
    def row_length(self) -> int:
        """Tokens in a row of the last segment of the curriculum, which is also that of held-out rows."""
        return self.chain_segments * self.sequence_length

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        lengths = [segment.sequence_length for segment in self.segments]
        if lengths[-1] != self.sequence_length:
            raise Misfit(
                f"the curriculum ends with sequence_length {lengths[-1]}, not with {self.sequence_length}",
                *("curriculum", "sequence_length"),
            )
        if any(a >= b for a, b in pairwise(lengths)):
            raise Misfit(f"the curriculum's sequence lengths {lengths} do not rise", "curriculum")
        for length in lengths:
            if self.sequence_length % length:
                raise Misfit(
                    f"the curriculum's sequence_length {length} does not divide {self.sequence_length}",
                    *("curriculum", "sequence_length"),
                )
            if length % self.document_alignment:
                raise Misfit(
                    f"document_alignment {self.document_alignment} does not divide sequence_length {length}",
                    *("document_alignment", "curriculum", "sequence_length"),
                )
        total = sum(segment.fraction for segment in self.segments)
        if abs(total - 1) > 1e-6:
            raise Misfit(f"the curriculum's fractions sum to {total:g}, not to 1", "curriculum")
        return self


class TokenizerSpec(Spec):
    """A SentencePiece BPE tokenizer: trained from the training split, or an existing one."""

    path: str | None = None
    """An existing ``.model`` file; None trains one."""
    vocab_size: int = Field(default=4096, ge=300, le=262_144)
    character_coverage: float = Field(default=0.9999, ge=0.98, le=1)
    """Share of the text whose characters get pieces of their own, room allowing; bytes spell the rest."""
    sample_bytes: int = Field(default=8 * 2**20, ge=1024)
    """Bytes of training text, drawn by seed, that the tokenizer is trained on."""

"""What the data room executes: sources, cleaning, tokenizer, packing. Pydantic and nothing heavy is imported here."""

import re
from collections import Counter
from collections.abc import Collection
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from data.decontamination.spec import DecontaminateSpec, given_decontaminate
from data.dedup.spec import DeduplicateSpec, ExactSpec, given_deduplicate
from data.mixture import Infeasible, MixtureSpec
from data.spec_base import Misfit, Seed, Spec, Weight
from data.stages.registry import PRESETS, StageSpec, given_stages


class SourceSpec(Spec):
    """One place that documents come from."""

    path: str
    """A path or glob, local or ``s3://``, ``gs://``: ``.txt .py .jsonl .html .htm .warc``, each also with ``.gz`` or ``.zst``,
    and ``.parquet``; or ``stdlib:prose`` and ``stdlib:code``, the text that every Python installation carries. A ``.txt`` file
    is one document, or, over 64 KiB, many: one ends at the first blank line after 4 KiB, or else at the first line's end after
    64 KiB, and earlier where it would be larger than ``max_document_bytes``. Of web pages the main text is taken."""
    text_field: str = "text"
    """The field that holds the text, in JSON lines and Parquet."""
    url_field: str | None = None
    """The field that holds the address where a document was found, for rules about addresses. A document may lack it."""
    language: str = "en"
    domain: str = "web"
    licence: str | None = None
    """Under which the text may be used, such as an SPDX id (``CC-BY-SA-4.0``). The report adds up the text under each."""
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


MARKS = 2
"""Tokens that begin and end a document."""


class DocumentTokens(Spec):
    """Limits on documents in tokens."""

    min: int | None = Field(default=None, ge=1)
    """Documents of fewer tokens, begin and end marks not counted, are dropped, as ``too_few_tokens``."""
    max: int | None = Field(default=None, ge=3)
    """Begin and end marks are counted, as they are in a row: what has this limit fits a row of as many tokens."""
    longer: Literal["cut", "drop"] = "cut"
    """Documents longer than ``max`` are cut into the fewest pieces that fit, all about as long, each of which is a document for
    attention; or dropped, as ``too_many_tokens``."""

    @model_validator(mode="after")
    def _limits_fit(self) -> Self:
        if self.min is None or self.max is None:
            return self
        if self.min + MARKS > self.max:
            raise Misfit(f"min {self.min} and begin and end marks are more than max {self.max}", "min", "max")
        # Halves of the shortest that is cut have one mark each.
        if self.longer == "cut" and self.min > (self.max - 1) // 2:
            raise Misfit(
                f"a document of {self.max + 1} tokens with its marks would be cut into pieces of less than min {self.min}:"
                f" ask at most {(self.max - 1) // 2}, or drop longer ones",
                *("min", "max", "longer"),
            )
        return self

    def reason(self, tokens: int) -> str:
        """Why a document of so many tokens beside its marks is dropped; empty where it is not."""
        if self.min is not None and tokens < self.min:
            return "too_few_tokens"
        return "too_many_tokens" if self.longer == "drop" and self.max is not None and tokens + MARKS > self.max else ""

    @property
    def limited(self) -> bool:
        return self.min is not None or self.max is not None


class DataSpec(Spec):
    """From documents to packed rows."""

    sources: tuple[SourceSpec, ...] = Field(default_factory=_stdlib, min_length=1)
    mixture: MixtureSpec | None = None
    """Targets by language and by domain for every global batch; None: cells have the weights of their sources."""
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
    document_tokens: DocumentTokens = DocumentTokens()
    packing: Literal["best_fit", "one_document"] = "best_fit"
    """``best_fit``: documents share rows with little padding (arXiv 2404.10830). ``one_document``: each has rows of its own,
    several if it is longer than one; the last is padded."""
    length_buckets: tuple[Annotated[int, Field(ge=8)], ...] = ()
    """Shorter lengths of rows beside ``sequence_length``, rising, for ``packing: one_document``: a document, or the rest of a
    long one, goes to the shortest row that holds it. A micro-batch has rows of one length, twice as many if half as long."""
    documents: bool = False
    """Keep documents as Parquet beside the rows: text, id, address, language, grade, domain, cell, split, tokens, scores."""
    document_alignment: int = Field(default=1, ge=1)
    """Documents begin at multiples of this many tokens in their row, for attention that works in blocks (``hierarchical``);
    the gaps are padding. Divides every sequence length."""
    stages: Annotated[tuple[StageSpec, ...], BeforeValidator(given_stages)] = PRESETS["quickstart"]  # type: ignore[assignment]
    """What each document goes through, in order, before deduplication: a list of stages with their settings, or a preset
    (``quickstart``, ``web``, ``papers``, ``code``, ``none``), or either by domain: ``{code: code, other: web}``. What a stage
    drops is in the report, with its reason."""
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
    decontaminate: Annotated[DecontaminateSpec | None, BeforeValidator(given_decontaminate)] = None
    """Training documents that overlap the held-out split or named test sets go: ``true``, or settings; ``none`` keeps all."""
    keep_dropped: bool = False
    """Dropped documents are kept aside in the prepared data set, as Parquet in ``dropped/``, with the step, the reason and the
    figure that decided. Of one that was dropped for its personal data neither the text nor the address is kept."""
    shard_documents: int = Field(default=512, ge=1)
    """Documents in one unit of work; part of the prepared data's identity."""
    seed: Seed = 0

    @property
    def cells(self) -> dict[tuple[str, str], float]:
        """Weight of each (language, domain) in every batch, in order of appearance."""
        weights = self.source_weights
        return weights if self.mixture is None else dict(self.mixture.fit(weights))

    @property
    def source_weights(self) -> dict[tuple[str, str], float]:
        """Sums of the sources' weights, by (language, domain)."""
        weights: dict[tuple[str, str], float] = {}
        for source in self.sources:
            key = (source.language, source.domain)
            weights[key] = weights.get(key, 0.0) + source.weight
        return weights

    def without(self, empty: Collection[int]) -> str:
        """What the mixture can be if these cells, by number, turn out to be empty, for the end of an error."""
        names = list(self.source_weights)
        return f"; {self.mixture.without(self.source_weights, [names[cell] for cell in empty])}" if self.mixture else ""

    @property
    def segments(self) -> tuple[CurriculumSegment, ...]:
        """The curriculum; without one, a single segment."""
        return self.curriculum or (CurriculumSegment(sequence_length=self.sequence_length, fraction=1.0),)

    @property
    def train_lengths(self) -> tuple[int, ...]:
        """Tokens in a training row of each segment, or bucket."""
        lengths = (*self.length_buckets, *(segment.sequence_length for segment in self.segments))
        return tuple(self.chain_segments * length for length in lengths)

    @property
    def row_length(self) -> int:
        """Tokens in a row of the last segment of the curriculum, which is also that of held-out rows."""
        return self.chain_segments * self.sequence_length

    @model_validator(mode="after")
    def _buckets_fit(self) -> Self:
        lengths = (*self.length_buckets, self.sequence_length)
        if not self.length_buckets:
            return self
        if self.packing != "one_document" or self.curriculum or self.chain_segments > 1:
            raise Misfit(
                "length_buckets are for packing one_document, without a curriculum and chain_segments",
                *("length_buckets", "packing", "curriculum", "chain_segments"),
            )
        if any(a >= b for a, b in pairwise(lengths)) or any(self.sequence_length % length for length in lengths):
            raise Misfit(
                f"length_buckets {list(self.length_buckets)} must rise and divide sequence_length {self.sequence_length}",
                *("length_buckets", "sequence_length"),
            )
        if any(length % self.document_alignment for length in lengths):
            raise Misfit(
                f"document_alignment {self.document_alignment} does not divide each of length_buckets",
                *("document_alignment", "length_buckets"),
            )
        return self

    @model_validator(mode="after")
    def _stages_see_something(self) -> Self:
        there = {source.domain for source in self.sources}
        for number, stage in enumerate(self.stages):
            if stage.domains is not None and not there.intersection(stage.domains):
                raise Misfit(
                    f"no source has the domain {' or '.join(stage.domains)}; there are {', '.join(sorted(there))}",
                    *(f"stages.{number}.domains", ("stages", stage.domains[0]), "stages", "sources"),
                )
        return self

    @model_validator(mode="after")
    def _mixture_fits(self) -> Self:
        try:
            _ = self.cells
        except Infeasible as error:
            raise Misfit(str(error), "mixture.languages", "mixture.domains", "sources") from error
        return self

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


FIXED_PIECES = 3 + 256
"""Of every tokenizer that is trained: unknown, begin, end, and the bytes."""
CONTROL_PIECES = re.compile("<(unk|s|/s|0x[0-9A-F]{2})>")
"""What text cannot be: the pieces of SentencePiece's own."""
SYMBOL_SPACE = "\u2581"
"""How SentencePiece writes a blank."""


def _symbol(symbol: str) -> str:
    if "\0" in symbol or any("\ud800" <= c <= "\udfff" for c in symbol):
        raise ValueError("a symbol holds neither NUL nor half of a surrogate pair")
    if SYMBOL_SPACE in symbol:
        raise ValueError("U+2581 stands for a blank: write the blank")
    if CONTROL_PIECES.fullmatch(symbol):
        raise ValueError(f"{symbol} is a piece that the tokenizer has for itself")
    return symbol


class TokenizerSpec(Spec):
    """A SentencePiece tokenizer with byte fallback: trained from the training split, or an existing one."""

    path: str | None = None
    """An existing ``.model`` file; None trains one."""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """Byte-pair encoding (Sennrich et al. 2016), or the unigram language model (Kudo 2018)."""
    vocab_size: int = Field(default=4096, ge=300, le=262_144)
    """Pieces at most: a sample that holds fewer gives fewer, and the report says how many."""
    character_coverage: float = Field(default=0.9999, ge=0.98, le=1)
    """Share of the text whose characters get pieces of their own, room allowing; bytes spell the rest."""
    sample_bytes: int = Field(default=8 * 2**20, ge=1024)
    """Bytes of training text, drawn by seed, that the tokenizer is trained on."""
    user_symbols: tuple[Annotated[str, Field(min_length=1), AfterValidator(_symbol)], ...] = ()
    """Each is one piece wherever a text holds it, inside words too (``<|tool|>``). Of symbols that overlap the first in the
    text counts, of those that begin together the longest."""
    lexicon: str | None = None
    """A file of a field's words, UTF-8, one a line. No token crosses the border of one, when the tokenizer is trained and when
    it is used. A word that begins or ends in a script written without blanks (``混合专家``), or with a sign (``C++``), is one
    piece wherever a text holds it, like a user symbol. A word between two letters or digits of Latin, Greek, Cyrillic and the
    like (``RLHF``, ``mixture-of-experts``) is respected where no such letter or accent stands beside it: it is one piece or
    several, the first of which may have the blank before it. To make such a word one piece, give it as a user symbol."""

    @model_validator(mode="after")
    def _pieces_fit(self) -> Self:
        if twice := [symbol for symbol, count in Counter(self.user_symbols).items() if count > 1]:
            raise Misfit(f"{twice[0]!r} is given twice", "user_symbols")
        if self.path is not None and (self.user_symbols or self.lexicon is not None):
            raise Misfit(
                "a tokenizer that exists has its pieces: user_symbols and lexicon are for one that is trained",
                *("user_symbols", "lexicon", "path"),
            )
        if self.path is None and self.vocab_size < FIXED_PIECES + len(self.user_symbols):
            raise Misfit(
                f"vocab_size {self.vocab_size} has no room for {len(self.user_symbols)} user_symbols beside the {FIXED_PIECES}"
                " pieces of every tokenizer",
                *("vocab_size", "user_symbols"),
            )
        return self

"""What became of the documents on their way into a prepared data set: the model of its ``report.json``.

It is written before the manifest, which carries its checksum. Everything in it adds up over tasks, so it is the same whatever
carried them out. ``data/build_report.py`` makes it.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import Field

from data.classifier.figures import ClassifierFigures
from data.manifest import REPORT_NAME, Count, Manifest, Record, Split, read_companion
from data.stages.base import DroppedExample, RedactionCount

FORMAT = 4
MOST_EPOCHS = 4.0
"""Up to so many passes repeated text is about as good as new (Muennighoff et al. 2023, "Scaling Data-Constrained Language
Models")."""


class Amount(Record):
    """``bytes`` are UTF-8 of the documents' text."""

    documents: int = 0
    bytes: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(documents=self.documents + other.documents, bytes=self.bytes + other.bytes)


class Spread(Record):
    """How many documents have which score."""

    edges: tuple[float, ...]
    counts: dict[str, tuple[int, ...]]
    """By language: up to the first edge, above it up to the second and so on, above the last."""


class Step(Record):
    """One step of the funnel: what came, and what did not go on, by reason."""

    name: str
    """``sources``, then the stages, then ``deduplicate`` and, where it is on, ``decontaminate``."""
    number: int | None = None
    """Of a stage: its place among the stages, from 1."""
    domains: tuple[str, ...] = ()
    """Of a stage: which of the sources' domains come to it."""
    came: Amount
    """To ``sources``: everything that was read, of which broken documents have no bytes."""
    drops: dict[str, int]
    examples: dict[str, tuple[DroppedExample, ...]]
    """The first ones of each reason, in reading order."""
    grades: dict[str, tuple[int, ...]] = Field(default={})
    """Of a stage that grades: documents of each level from 0 up, dropped ones too, by language."""
    scores: dict[str, Spread] = Field(default={})
    """Of a stage that scores, by the name of the score; dropped documents too."""
    redactions: dict[str, RedactionCount] = Field(default={})
    """Of a stage that redacts, by kind; of documents that went on."""

    @property
    def dropped(self) -> int:
        return sum(self.drops.values())


class Histogram(Record):
    """``counts[b]`` values v with ``2**b <= v < 2**(b + 1)``; bin 0 holds 0 too."""

    counts: tuple[int, ...] = ()

    @classmethod
    def of(cls, values: Iterable[int]) -> "Histogram":
        counts: list[int] = []
        for value in values:
            place = max(value, 1).bit_length() - 1
            counts += [0] * (place + 1 - len(counts))
            counts[place] += 1
        return cls(counts=tuple(counts))

    def __add__(self, other: "Histogram") -> "Histogram":
        short, long = sorted((self.counts, other.counts), key=len)
        return Histogram(counts=(*(a + b for a, b in zip(short, long, strict=False)), *long[len(short) :]))

    @property
    def total(self) -> int:
        return sum(self.counts)


class TextFigures(Record):
    """What the tokenizer made of some documents; begin and end marks are not counted."""

    bytes: int = 0
    tokens: int = 0
    unknown: int = 0
    """Tokens that stand for text that the tokenizer cannot write."""
    byte_pieces: int = 0
    """Tokens of one byte each, where characters have no pieces of their own."""
    lengths: Histogram = Histogram()
    """Of documents, in tokens."""

    def __add__(self, other: "TextFigures") -> "TextFigures":
        return TextFigures(
            bytes=self.bytes + other.bytes,
            tokens=self.tokens + other.tokens,
            unknown=self.unknown + other.unknown,
            byte_pieces=self.byte_pieces + other.byte_pieces,
            lengths=self.lengths + other.lengths,
        )


class LanguageTokens(Record):
    """The tokenizer's figures over the documents of one language, or one of its domains, training and held-out."""

    language: str
    domain: str | None = None
    """None: all of them."""
    figures: TextFigures
    bytes_per_token: float
    unknown_share: float
    """Of the tokens."""
    byte_share: float
    """Of the tokens, those that are single bytes."""

    @classmethod
    def of(cls, language: str, figures: TextFigures, domain: str | None = None) -> "LanguageTokens":
        tokens = max(figures.tokens, 1)
        return cls(
            language=language,
            domain=domain,
            figures=figures,
            bytes_per_token=round(figures.bytes / tokens, 4),
            unknown_share=round(figures.unknown / tokens, 6),
            byte_share=round(figures.byte_pieces / tokens, 6),
        )


class ReferenceFigures(Record):
    """What training documents were compared with: the held-out split, or a test set."""

    name: str
    items: int
    """Documents of the one, documents of the other's files."""
    too_short: int
    """Items that have no n-gram, or only formulas: they were not looked for."""
    ngrams: int
    found: int
    """Items that some training document overlapped too much."""
    dropped: int
    """Training documents that overlapped one of them more than an item of another set."""


class CellFlow(Record):
    """One (language, domain), as its sources state it, from the sources to the rows."""

    language: str
    domain: str
    read: Amount
    cleaned: Amount
    """What passed every stage."""
    kept: Amount
    """And was no duplicate, and overlapped nothing."""
    train: Count
    held_out: Count

    @property
    def name(self) -> str:
        return f"{self.language}/{self.domain}"


class LicenceFlow(Record):
    """The text under one licence, as its sources state it."""

    licence: str | None
    """None: no source of it says."""
    sources: tuple[str, ...]
    """Their paths."""
    read: Amount
    kept: Amount


class RowFill(Record):
    """Rows of one length in one split."""

    split: Split
    row_length: int
    rows: int
    documents: int
    """That begin in them."""
    tokens: int
    """Begin and end marks among them; the rest is padding."""

    @property
    def padding(self) -> float:
        """Share of the rows' room that holds no token."""
        return 1 - self.tokens / (self.rows * self.row_length)


class Report(Record):
    format: int = FORMAT
    hash: str
    """Identity of the data set."""
    steps: tuple[Step, ...]
    kept: Amount
    """What is left at the end."""
    cells: tuple[CellFlow, ...]
    licences: tuple[LicenceFlow, ...] = ()
    languages_found: dict[str, Amount]
    """By the language that documents were in behind the last stage: as found where a stage ``language`` assigned it, as stated
    by their sources otherwise. Before duplicates were dropped."""
    duplicate_clusters: Histogram
    """Sizes of the groups of documents of which one was kept; bin 0 is empty."""
    largest_cluster: int = 0
    """Documents in the largest of these groups."""
    decontamination: tuple[ReferenceFigures, ...] = ()
    """Empty where it is off."""
    classifiers: tuple[ClassifierFigures, ...] = ()
    """Of the stages that may have one."""
    lengths: Histogram
    """Of the documents kept, in tokens."""
    rows: tuple[RowFill, ...]
    """By split, then length, the shortest first."""
    vocab_size: int
    vocab_size_asked: int | None
    """None: an existing tokenizer was taken."""
    tokens: tuple[LanguageTokens, ...]
    """By language."""
    cell_tokens: tuple[LanguageTokens, ...]
    """By cell, in the order of ``cells``."""

    @property
    def reached(self) -> tuple[Step, ...]:
        """The steps that documents came to: stages by domain may be for one that no source has."""
        return tuple(step for step in self.steps if step.came.documents or step.number is None)

    def label(self, step: Step) -> str:
        """``3 c4``, with the domains where not all come to it: ``3 c4 (web)``, ``3 c4 (all but code)``."""
        domains = dict.fromkeys(cell.domain for cell in self.cells)
        unseen = [domain for domain in domains if domain not in step.domains]
        if step.number is None:
            return step.name
        few = ", ".join(step.domains) if len(step.domains) <= len(unseen) else f"all but {', '.join(unseen)}"
        return f"{step.number} {step.name}" + (f" ({few})" if unseen else "")

    def shares(self, by: str, moment: str) -> dict[str, float]:
        """Share of the bytes of each ``language`` or ``domain`` (``by``) in what was ``read``, ``cleaned`` or ``kept``."""
        sums: dict[str, int] = {}
        for cell in self.cells:
            key = str(getattr(cell, by))
            sums[key] = sums.get(key, 0) + getattr(cell, moment).bytes
        total = sum(sums.values())
        return {key: value / total if total else 0.0 for key, value in sums.items()}

    def token_rows(self) -> Iterator[tuple[str, LanguageTokens]]:
        """Each language, and below it its cells where there are several; with names."""
        for language in self.tokens:
            yield language.language, language
            of_language = [cell for cell in self.cell_tokens if cell.language == language.language]
            if len(of_language) > 1:
                yield from ((f"  {cell.language}/{cell.domain}", cell) for cell in of_language)

    @property
    def pieces_fewer(self) -> int:
        """By how many pieces the tokenizer is smaller than was asked."""
        return max(0, (self.vocab_size_asked or 0) - self.vocab_size)

    @classmethod
    def read(cls, directory: Path) -> "Report":
        """
        Raises:
            ShardError: there is no data set, or no report, or it does not match the manifest's checksum.
        """
        return read_companion(cls, directory / REPORT_NAME, Manifest.read(directory).report_checksum)


def epochs(manifest: Manifest, tokens: int) -> dict[str, float]:
    """How often a run of ``tokens`` tokens, padding among them, goes through each cell's training rows."""
    weights = [cell.weight for cell in manifest.cells]
    taken = [tokens * weight / sum(weights) for weight in weights]
    held = [_tokens_of_rows(manifest, cell) for cell in range(len(weights))]
    return {cell.name: share / max(rows, 1) for cell, share, rows in zip(manifest.cells, taken, held, strict=True)}


def _tokens_of_rows(manifest: Manifest, cell: int) -> int:
    counts: Sequence[Count] = [segment.cells[cell] for segment in manifest.segments]
    return sum(count.rows * manifest.row_length(number) for number, count in enumerate(counts))

"""A stage maps a document to a document or to a drop, and a drop always has a reason.

Only ``clean`` counts; stages know nothing of files, executors, reports or other domains. A stage is one file with its spec
(pydantic, imported by everybody who reads job specs) and its class (whatever that needs is imported when it is made), and a
line in ``data/stages/registry.py``.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol

from pydantic import Field

from data.documents import Document
from data.spec_base import Spec
from data.stages.excerpt import excerpt

EXAMPLES = 10
"""Dropped documents that are shown for each reason."""
GRADES = 5
"""Levels of quality, numbered from 0 up."""


class StageSettings(Spec):
    """What every stage's spec has."""

    domains: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Documents of these domains come to it, others pass unseen. None: of all but ``skip_domains``."""
    skip_domains: tuple[str, ...] = ()
    """Documents of these domains pass unseen."""

    def sees(self, domain: str) -> bool:
        return domain not in self.skip_domains if self.domains is None else domain in self.domains


@dataclass(frozen=True, slots=True)
class Drop:
    reason: str
    """A short name that is counted: ``mean_word_length``."""
    detail: str = ""
    """The figure that decided: ``11.2``."""
    confidential: bool = False
    """The text is not to be shown as an example."""


OnDrop = Callable[[str, Drop, Document], None]
"""Takes what a stage of some name dropped."""


class Stage(Protocol):
    """One that gives documents their grade has an attribute ``grades`` that is true, one that redacts has ``redacts``. One that
    gives them scores has ``scores``: the edges of the bins in which each is counted, by its name; and its spec has their names.
    """

    def __call__(self, document: Document) -> Document | Drop: ...


@dataclass(frozen=True, slots=True)
class DroppedExample:
    """A document that was dropped."""

    id: str
    detail: str
    text: str
    """An ``excerpt``; empty where that is confidential."""


@dataclass(slots=True)
class ScoreCount:
    """How many documents have which score."""

    edges: tuple[float, ...]
    counts: dict[str, list[int]] = field(default_factory=dict)
    """By language: up to the first edge, above it up to the second and so on, above the last."""

    def add(self, other: "ScoreCount") -> None:
        for language, counts in other.counts.items():
            self.counts[language] = [a + b for a, b in zip(self._of(language), counts, strict=True)]

    def take(self, language: str, score: float) -> None:
        counts = self._of(language)
        counts[bisect_left(self.edges, score)] += 1
        self.counts[language] = counts

    def _of(self, language: str) -> list[int]:
        return self.counts.get(language) or [0] * (len(self.edges) + 1)


@dataclass(slots=True)
class RedactionCount:
    """Of one kind."""

    values: int = 0
    documents: int = 0
    """That held some."""


@dataclass(slots=True)
class StageCount:
    """What one stage saw. Counts of tasks add up."""

    stage: str
    documents: int = 0
    """That came to it."""
    bytes: int = 0
    """Of their text, UTF-8."""
    drops: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[DroppedExample]] = field(default_factory=dict)
    """By reason, the first ones."""
    grades: dict[str, list[int]] = field(default_factory=dict)
    """Of a stage that grades: documents of each level from 0 up, dropped ones too, by language."""
    scores: dict[str, ScoreCount] = field(default_factory=dict)
    """Of a stage that scores, by the name of the score; dropped documents too."""
    redactions: dict[str, RedactionCount] = field(default_factory=dict)
    """Of a stage that redacts, by kind; of documents that went on."""

    def drop(self, drop: Drop, document: Document) -> None:
        self.drops[drop.reason] = self.drops.get(drop.reason, 0) + 1
        shown = self.examples.setdefault(drop.reason, [])
        if len(shown) < EXAMPLES:
            text = "" if drop.confidential else excerpt(document.text, document.language)
            shown.append(DroppedExample(document.id, drop.detail, text))

    def grade(self, document: Document) -> None:
        if document.grade is not None:
            levels = self.grades.setdefault(document.language, [0] * GRADES)
            levels[document.grade] += 1

    def score(self, document: Document, edges: Mapping[str, tuple[float, ...]]) -> None:
        for name, score in (document.scores or {}).items():
            if name in edges:
                self.scores.setdefault(name, ScoreCount(edges[name])).take(document.language, score)

    def redact(self, document: Document) -> None:
        for kind, values in (document.redactions or {}).items():
            self._redacted(kind, RedactionCount(values, 1))

    def _redacted(self, kind: str, more: RedactionCount) -> None:
        count = self.redactions.setdefault(kind, RedactionCount())
        count.values += more.values
        count.documents += more.documents

    def add(self, other: "StageCount") -> None:
        """Take in the counts of documents further on."""
        self.documents += other.documents
        self.bytes += other.bytes
        for reason, count in other.drops.items():
            self.drops[reason] = self.drops.get(reason, 0) + count
        for reason, examples in other.examples.items():
            mine = self.examples.setdefault(reason, [])
            mine.extend(examples[: EXAMPLES - len(mine)])
        for language, levels in other.grades.items():
            before = self.grades.get(language, [0] * GRADES)
            self.grades[language] = [a + b for a, b in zip(before, levels, strict=True)]
        for name, spread in other.scores.items():
            self.scores.setdefault(name, ScoreCount(spread.edges)).add(spread)
        for kind, redacted in other.redactions.items():
            self._redacted(kind, redacted)


def clean(
    documents: Iterable[Document], stages: Sequence[Stage], counts: Sequence[StageCount], on_drop: OnDrop | None = None
) -> Iterator[Document]:
    """Each document through every stage in turn; ``counts``, one a stage, take in what came and what fell out."""
    for document in documents:
        for stage, count in zip(stages, counts, strict=True):
            count.documents += 1
            count.bytes += len(document.text.encode())
            outcome = stage(document)
            if getattr(stage, "grades", False):
                count.grade(document)
            if edges := getattr(stage, "scores", None):
                count.score(document, edges)
            if isinstance(outcome, Drop):
                count.drop(outcome, document)
                if on_drop is not None:
                    on_drop(count.stage, outcome, document)
                break
            document = outcome
            if getattr(stage, "redacts", False):
                count.redact(document)
        else:
            yield document

"""Cleaning. A stage maps a document to a document or to a drop, and a drop always has a reason.

Only ``clean`` counts; stages know nothing of files, executors or reports.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from data.documents import Document


@dataclass(frozen=True, slots=True)
class Drop:
    reason: str


class Stage(Protocol):
    def __call__(self, document: Document) -> Document | Drop: ...


# C0 and C1 controls but tab and newline, the byte-order mark, and U+2581, which SentencePiece uses for a space.
_UNWANTED = {c: None for c in (*range(32), *range(127, 160), 0xFEFF) if c not in (9, 10)} | {0x2581: " "}
_NEWLINES = re.compile(r"\r\n?|\u2028|\u2029")


class Normalise:
    """Unicode NFC, one kind of newline, no control characters, no blank ends."""

    def __call__(self, document: Document) -> Document | Drop:
        text = _NEWLINES.sub("\n", document.text).translate(_UNWANTED)
        document.text = unicodedata.normalize("NFC", text).strip()
        return document


class Length:
    """Drops what has fewer characters than ``minimum``."""

    def __init__(self, minimum: int) -> None:
        self.minimum = minimum

    def __call__(self, document: Document) -> Document | Drop:
        if not document.text:
            return Drop("empty")
        return document if len(document.text) >= self.minimum else Drop("too_short")


def clean(documents: Iterable[Document], stages: Iterable[Stage], drops: Counter[str]) -> Iterator[Document]:
    """Each document through every stage in turn; ``drops`` counts those that fell out, by reason."""
    stages = tuple(stages)
    for document in documents:
        for stage in stages:
            outcome = stage(document)
            if isinstance(outcome, Drop):
                drops[outcome.reason] += 1
                break
            document = outcome
        else:
            yield document

"""Gopher's repetition rules (Rae et al. 2021, arXiv 2112.11446, table A1): drop above

    duplicate line fraction                 0.30      top 2-gram character fraction           0.20
    duplicate paragraph fraction            0.30      top 3-gram character fraction           0.18
    duplicate line character fraction       0.20      top 4-gram character fraction           0.16
    duplicate paragraph character fraction  0.20
    duplicate 5, 6, 7, 8, 9, 10-gram character fraction      0.15, 0.14, 0.13, 0.12, 0.11, 0.10

A duplicate is a line, paragraph or n-gram that was there before (its first occurrence is none); overlapping n-grams are not
counted twice. Fractions are of all characters of the document. As in the code that made FineWeb, spaces between the words of
a top n-gram are counted, those of a duplicate one are not. Blank lines are none. Text without words, such as Thai, has no rules
of n-grams.
"""

import re
from typing import Annotated, Literal

from pydantic import Field

from data.documents import Document
from data.spec_base import Share, Spec
from data.stages.base import Drop, StageSettings
from data.stages.text import above, characters, duplicates, figure, has_no_words, is_chinese, nonblank_lines
from data.stages.words import tokens

_PARAGRAPH = re.compile(r"\n\s*\n")

NGramShares = dict[Annotated[int, Field(ge=1, le=64)], Share]
"""Share by n."""


class ChineseRepetition(Spec):
    """n-grams of characters. The defaults are our own: Gopher's, with n words as 1.5 n characters."""

    max_top_n_gram: NGramShares | None = Field(default={3: 0.20, 5: 0.18, 6: 0.16})
    max_duplicate_n_grams: NGramShares | None = Field(default={8: 0.15, 9: 0.14, 11: 0.13, 12: 0.12, 14: 0.11, 15: 0.10})


class GopherRepetitionSpec(StageSettings):
    """Drops what repeats itself: lines, paragraphs, n-grams (Gopher)."""

    stage: Literal["gopher_repetition"] = "gopher_repetition"
    skip_domains: tuple[str, ...] = ("code",)
    """The rules are for text that people read."""
    max_duplicate_lines: Share | None = 0.30
    max_duplicate_paragraphs: Share | None = 0.30
    max_duplicate_line_characters: Share | None = 0.20
    max_duplicate_paragraph_characters: Share | None = 0.20
    max_top_n_gram: NGramShares | None = Field(default={2: 0.20, 3: 0.18, 4: 0.16})
    """By n: characters in all occurrences of the most frequent n-gram of words."""
    max_duplicate_n_grams: NGramShares | None = Field(default={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10})
    """By n: characters in n-grams of words that were there before."""
    chinese: ChineseRepetition = ChineseRepetition()
    """In place of the n-grams of words, for text without spaces."""


class GopherRepetition:
    def __init__(self, spec: GopherRepetitionSpec) -> None:
        from data.stages.repeats import Repeats

        self._spec = spec
        self._repeats = Repeats

    def __call__(self, document: Document) -> Document | Drop:
        text = document.text
        if not text:
            return document
        return self._parts(text) or (None if has_no_words(document) else self._n_grams(document)) or document

    def _parts(self, text: str) -> Drop | None:
        spec, size = self._spec, len(text)
        lines = nonblank_lines(text)
        repeated, repeated_characters = duplicates(lines)
        if not repeated:
            # Each paragraph has a line that is nowhere else.
            return None
        if above(repeated / len(lines), spec.max_duplicate_lines):
            return Drop("duplicate_lines", figure(repeated / len(lines)))
        if above(repeated_characters / size, spec.max_duplicate_line_characters):
            return Drop("duplicate_line_characters", figure(repeated_characters / size))
        paragraphs = _PARAGRAPH.split(text.strip())
        repeated, repeated_characters = duplicates(paragraphs)
        if above(repeated / len(paragraphs), spec.max_duplicate_paragraphs):
            return Drop("duplicate_paragraphs", figure(repeated / len(paragraphs)))
        if above(repeated_characters / size, spec.max_duplicate_paragraph_characters):
            return Drop("duplicate_paragraph_characters", figure(repeated_characters / size))
        return None

    def _n_grams(self, document: Document) -> Drop | None:
        size = len(document.text)
        rules: GopherRepetitionSpec | ChineseRepetition
        if is_chinese(document):
            rules, repeats = self._spec.chinese, self._repeats(characters(document.text), 0, size)
        else:
            rules, repeats = self._spec, self._repeats(tokens(document.text), 1, size)
        if (found := repeats.top(rules.max_top_n_gram or {})) is not None:
            return Drop(f"top_{found[0]}_gram", figure(found[1]))
        if (found := repeats.duplicates(rules.max_duplicate_n_grams or {})) is not None:
            return Drop(f"duplicate_{found[0]}_grams", figure(found[1]))
        return None

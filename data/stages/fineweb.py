"""FineWeb's own rules (Penedo et al. 2024, arXiv 2406.17557, section 3.5): drop where

    the fraction of lines ending with punctuation is <= 0.12;
    the fraction of characters in duplicated lines is >= 0.1;
    the fraction of lines shorter than 30 characters is >= 0.67;

and, in the code but not in the paper, where there are more than 0.3 newlines a word (lists). Blank lines are none. The code's
default for duplicated lines is 0.01; ours is the paper's. The first and the last are not for text without words, such as Thai.
"""

import math
from typing import Annotated, Literal

from pydantic import Field

from data.documents import Document
from data.spec_base import Share, Spec
from data.stages.base import Drop, StageSettings
from data.stages.text import (
    CHINESE_LINE_ENDS,
    CLOSING,
    SENTENCE_ENDS,
    above,
    characters,
    duplicates,
    figure,
    has_no_words,
    is_chinese,
    nonblank_lines,
)
from data.stages.words import tokens

_ENDS = frozenset(SENTENCE_ENDS)
_CHINESE_ENDS = tuple(CHINESE_LINE_ENDS)
PositiveShare = Annotated[float, Field(gt=0, le=1)]


class ChineseFineWeb(Spec):
    """In place of what is measured in English letters and words. The defaults are our own: 1.5 characters for a word, and a
    line of 30 letters for six words."""

    short_line_characters: int = Field(default=9, ge=0)
    max_newlines: float | None = Field(default=0.2, ge=0)
    """A character."""


class FineWebSpec(StageSettings):
    """Drops lists, menus and other text of lines that are no sentences (FineWeb)."""

    stage: Literal["fineweb"] = "fineweb"
    skip_domains: tuple[str, ...] = ("code",)
    """The rules are for text that people read."""
    min_punctuated_lines: Share | None = 0.12
    """Share of lines that end a sentence: at this and below it, documents go."""
    max_short_lines: PositiveShare | None = 0.67
    """Share of lines: at this and above it, documents go."""
    short_line_characters: int = Field(default=30, ge=0)
    """A line of fewer is short."""
    max_duplicate_line_characters: PositiveShare | None = 0.1
    """Share of the characters in lines: at this and above it, documents go."""
    max_newlines: float | None = Field(default=0.3, ge=0)
    """A word."""
    chinese: ChineseFineWeb = ChineseFineWeb()


class FineWeb:
    def __init__(self, spec: FineWebSpec) -> None:
        self._spec = spec

    def __call__(self, document: Document) -> Document | Drop:
        chinese = is_chinese(document)
        lines = nonblank_lines(document.text)
        if not lines:
            return Drop("no_lines")
        if has_no_words(document):
            return self._lines(lines, chinese) or document
        by_sentences = self._punctuated(lines, chinese) or self._lines(lines, chinese)
        return by_sentences or self._newlines(document.text, chinese) or document

    def _punctuated(self, lines: list[str], chinese: bool) -> Drop | None:
        least = self._spec.min_punctuated_lines
        ended = sum(ends_sentence(line, chinese) for line in lines) / len(lines)
        return Drop("few_punctuated_lines", figure(ended)) if least is not None and ended <= least else None

    def _lines(self, lines: list[str], chinese: bool) -> Drop | None:
        spec = self._spec
        border = spec.chinese.short_line_characters if chinese else spec.short_line_characters
        short = sum(len(line) < border for line in lines) / len(lines)
        if spec.max_short_lines is not None and short >= spec.max_short_lines:
            return Drop("short_lines", figure(short))
        repeated = duplicates(lines)[1] / sum(map(len, lines))
        if spec.max_duplicate_line_characters is not None and repeated >= spec.max_duplicate_line_characters:
            return Drop("characters_in_duplicate_lines", figure(repeated))
        return None

    def _newlines(self, text: str, chinese: bool) -> Drop | None:
        newlines = text.count("\n")
        most = self._spec.chinese.max_newlines if chinese else self._spec.max_newlines
        if most is None or (not chinese and _has_words(text, newlines, most)):
            return None
        found = newlines / max(1, len(characters(text)) if chinese else len(tokens(text)))
        return Drop("many_newlines", figure(found)) if above(found, most) else None


def _has_words(text: str, newlines: int, most: float) -> bool:
    """Whether what spaces part, which is never more than the tokens, is already enough; no more of it is split."""
    enough = math.ceil(newlines / most) if most else len(text)
    return len(text.split(None, enough)) > enough


def ends_sentence(line: str, chinese: bool) -> bool:
    line = line.rstrip()
    return line.rstrip(CLOSING).endswith(_CHINESE_ENDS) if chinese else line[-1] in _ENDS

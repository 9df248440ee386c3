"""The Stack's and StarCoder's rules for source files (Li et al. 2023, arXiv 2305.06161, section 3, and their code): drop where

    the longest line has more than 1,000 characters; lines have more than 100 on average;
    the fraction of alphanumeric characters is less than 0.25;
    "<?xml version=" is among the first 100 characters.

Codex had the same lengths of lines before (Chen et al. 2021, arXiv 2107.03374).
"""

import string
from typing import Literal

from pydantic import Field

from data.documents import Document
from data.spec_base import Share
from data.stages.base import Drop, StageSettings
from data.stages.text import above, below, figure

_ALPHANUMERIC = (string.ascii_letters + string.digits).encode()
_XML = "<?xml version="
_XML_WITHIN = 100


class CodeSpec(StageSettings):
    """Drops source files that nobody wrote: minified, generated, data (StarCoder)."""

    stage: Literal["code"] = "code"
    max_line_characters: int | None = Field(default=1000, ge=1)
    max_mean_line_characters: float | None = Field(default=100, gt=0)
    min_alphanumeric: Share | None = 0.25
    """Share of characters."""
    drop_xml: bool = True


class Code:
    def __init__(self, spec: CodeSpec) -> None:
        self._spec = spec

    def __call__(self, document: Document) -> Document | Drop:
        spec, text = self._spec, document.text
        lengths = [len(line) for line in text.splitlines()]
        if not lengths:
            return document
        longest, mean = max(lengths), sum(lengths) / len(lengths)
        if above(longest, spec.max_line_characters):
            return Drop("long_line", str(longest))
        if above(mean, spec.max_mean_line_characters):
            return Drop("long_lines", figure(mean))
        if below(share := _alphanumeric(text) / len(text), spec.min_alphanumeric):
            return Drop("few_alphanumeric_characters", figure(share))
        if spec.drop_xml and _XML in text[:_XML_WITHIN]:
            return Drop("xml")
        return document


def _alphanumeric(text: str) -> int:
    if text.isascii():
        return len(text) - len(text.encode().translate(None, _ALPHANUMERIC))
    return sum(map(str.isalnum, text))

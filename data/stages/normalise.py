"""Unicode NFC, one kind of newline, no control characters, no blank ends."""

import re
import unicodedata
from typing import Literal

from data.documents import Document
from data.stages.base import Drop, StageSettings

# C0 and C1 controls but tab and newline, and the byte-order mark. A space takes the place of the separator of units, which
# parts words, and of U+2581, which SentencePiece uses for one.
_UNWANTED = {c: None for c in (*range(32), *range(127, 160), 0xFEFF) if c not in (9, 10)} | {0x1F: " ", 0x2581: " "}
# Those and what ends a line elsewhere: most texts hold none, and a search is faster than what takes them out.
_LOOKED_FOR = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u2581\ufeff]")
# All that Unicode breaks lines at, and the separators of files, groups and records.
_NEWLINES = re.compile(r"\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")


class NormaliseSpec(StageSettings):
    """Unicode NFC, one kind of newline, no control characters, no blank ends."""

    stage: Literal["normalise"] = "normalise"


class Normalise:
    def __init__(self, spec: NormaliseSpec) -> None:
        pass

    def __call__(self, document: Document) -> Document | Drop:
        text = document.text
        if _LOOKED_FOR.search(text) is not None:
            text = _NEWLINES.sub("\n", text).translate(_UNWANTED)
        document.text = unicodedata.normalize("NFC", text).strip()
        return document

"""Texts as n-grams in which case, punctuation, white space and Unicode's compatible forms count for nothing.

``U`` counts units (words, or characters where a script writes no spaces), of one text after another.
"""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.decontamination.spec import DecontaminateSpec
from data.dedup.shingles import hash_words, ngram_hashes
from data.files import U64
from data.scripts import spaceless_letters, words_and_characters
from data.selection import Ints

# GPT-3 never takes fewer than 8 words; 12 characters are as much.
SHORTEST_WORDS = 8
SHORTEST_CHARACTERS = 12

# Don't is dont, however the apostrophe is written, or left out; soft hyphens, zero-width spaces and joiners are nothing.
_NOTHING = {ord(c): None for c in "'’ʼ＇\u00ad\u200b\u200c\u200d\u2060\ufeff"}
_EVENED = _NOTHING | {ord("_"): " "}
_ASCII_TO_WORDS = {c: " " for c in range(128) if not chr(c).isalnum()} | {ord("'"): None}


def units(text: str) -> list[str]:
    """Words and characters in reading order."""
    if text.isascii():  # the same, several times faster
        return text.lower().translate(_ASCII_TO_WORDS).split()
    return words_and_characters(unicodedata.normalize("NFKC", text).lower().translate(_EVENED))


class Windows(NamedTuple):
    """The n-grams of some texts."""

    hash_W: U64
    text_W: Ints
    """Which text each is of."""


class Texts:
    """Several texts, to be cut into n-grams of several lengths."""

    def __init__(self, texts: Sequence[str]) -> None:
        lists = [units(text) for text in texts]
        self.length_T = np.array([len(each) for each in lists], np.int64)
        self._hash_U = hash_words([unit for each in lists for unit in each])
        self._text_U = np.repeat(np.arange(len(lists)), self.length_T)

    def windows(self, n: int) -> Windows:
        if len(self._hash_U) < n:
            return Windows(np.empty(0, np.uint64), np.empty(0, np.int64))
        text_W = self._text_U[: len(self._text_U) - n + 1]
        whole_W = text_W == self._text_U[n - 1 :]
        return Windows(ngram_hashes(self._hash_U, n)[whole_W], text_W[whole_W])


def item_lengths(texts: Sequence[str], length_T: Ints, spec: DecontaminateSpec) -> Ints:
    """The length of n-gram that each item is known by, ``[T]``: a short item is one n-gram, too short a one none (0)."""
    lengths = []
    for text, size in zip(texts, length_T.tolist(), strict=True):
        spaceless = 2 * spaceless_letters(text) > size
        longest, shortest = (spec.character_ngram, SHORTEST_CHARACTERS) if spaceless else (spec.ngram, SHORTEST_WORDS)
        lengths.append(min(size, longest) if size >= min(longest, shortest) else 0)
    return np.array(lengths, np.int64)

"""A document as the set of its n-grams, each a 64-bit hash: what its likeness to another is measured by.

``S`` counts shingles.
"""

import re
import sys
from collections.abc import Sequence

import numpy as np
import xxhash

from data.files import U64, mix64
from data.remembered import Remembered
from data.scripts import words_and_characters
from data.selection import text_hash
from data.stages.text import by_characters

_WORD = re.compile(r"\w+")
_ASCII_TO_WORDS = {c: " " for c in range(128) if not (chr(c).isalnum() or chr(c) == "_")}
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

# As they lie in memory, so that those of a text are joined and not counted out.
_word_hashes = Remembered(lambda word: xxhash.xxh3_64_intdigest(word.encode()).to_bytes(8, sys.byteorder), most=1 << 20)


def shingle_hashes(text: str, ngram: int) -> U64:
    """Hashes of all n-grams of words (of characters, in scripts that write none apart), ``[S >= 1]``, in reading order.

    Case, punctuation and white space count for nothing, nor does the language that is stated. A shorter text is one shingle.
    """
    units = _words(text)
    if not len(units):
        return np.array([text_hash(text)], np.uint64)
    return ngram_hashes(units, min(ngram, len(units)))


def unit_hashes(text: str, language: str) -> U64:
    """Of each word, or character of a language that is written without spaces, in reading order: what its classifier knows."""
    return _characters(text) if by_characters(language) else _words(text)


def ngram_hashes(unit_N: U64, n: int) -> U64:
    """Of ``n`` units in a row each, ``[N - n + 1]``; ``1 <= n <= N``."""
    count = len(unit_N) - n + 1
    rolled = unit_N[:count].copy()
    for i in range(1, n):
        rolled *= _MULTIPLIER
        rolled += unit_N[i : i + count]
    return mix64(rolled)


def _words(text: str) -> U64:
    text = text.lower()
    # The same words either way; the way for ASCII is several times faster.
    return hash_words(text.translate(_ASCII_TO_WORDS).split() if text.isascii() else words_and_characters(text))


def hash_words(words: Sequence[str]) -> U64:
    """xxh3-64 of each word."""
    return np.frombuffer(b"".join(_word_hashes.of(words)), np.uint64)


def _characters(text: str) -> U64:
    code_points = np.frombuffer("".join(_WORD.findall(text.lower())).encode("utf-32-le"), np.uint32)
    return mix64(code_points.astype(np.uint64))

"""A text as a linear classifier sees it: hashed n-grams, and figures that somebody else measured.

Hashing in place of a vocabulary (Weinberger et al., ICML 2009) and n-grams of words as features of a linear model (fastText:
Joulin et al., arXiv 1607.01759); of characters where words are not written apart.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.dedup.shingles import ngram_hashes
from data.files import U64

BUCKETS = 1 << 18
MOST_CHARACTERS = 20_000
"""Of a text; what comes after them counts for nothing, so that length alone makes no classifier surer than its examples."""
_WORD_NGRAMS = (1, 2)
_CHARACTER_NGRAMS = (1, 2, 3)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Features:
    """``N`` n-grams, ``F`` figures."""

    bucket_N: npt.NDArray[np.int64]
    """In reading order, as often as they are there; at least one."""
    figure_F: Floats


def features_of(unit_N: U64, characters: bool, figure_F: Floats | None = None) -> Features:
    """
    Args:
        unit_N: hashes of words or, with ``characters``, of characters, as ``data.dedup.shingles.unit_hashes`` gives them.
    """
    if not len(unit_N):
        unit_N = np.zeros(1, np.uint64)  # a text without words has this one
    sizes = _CHARACTER_NGRAMS if characters else _WORD_NGRAMS
    hashes = np.concatenate([ngram_hashes(unit_N, n) for n in sizes if n <= len(unit_N)])
    bucket_N = (hashes & np.uint64(BUCKETS - 1)).astype(np.int64)
    return Features(bucket_N, np.zeros(0) if figure_F is None else figure_F)

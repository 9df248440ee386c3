"""Repeated n-grams of a document, exactly, and quickly where there are few.

N is the number of tokens, W that of different ones.

Almost every document is far below the thresholds, and bounds prove it without a look at each n:

- An n-gram is at most as frequent as each token and shorter n-gram inside it. So all its occurrences have at most n times the
  characters that one token can have in that many places.
- Where an n-gram is repeated, every m-gram inside it is repeated, so the characters under repeated m-grams bound those under
  repeated n-grams.
- Taking two different n-grams for the same, as hashes may, only raises the second bound. What is counted is compared in full.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
# Odd and without pattern: the golden ratio's.
_MULTIPLIER = 0x9E3779B97F4A7C15


class Repeats:
    """The n-grams of ``tokens``, in shares of a text of ``size`` characters; ``joint`` characters are between two tokens."""

    def __init__(self, tokens: str | tuple[str, ...], joint: int, size: int) -> None:
        self._tokens = tokens
        self._joint = joint
        self._size = size
        counts = Counter(tokens)
        number = dict(zip(counts, range(len(counts)), strict=True))
        self._count_W: Ints = np.fromiter(counts.values(), np.int64, len(counts))
        self._length_W: Ints = np.fromiter(map(len, counts), np.int64, len(counts))
        self._id_N: U64 = np.fromiter(map(number.__getitem__, tokens), np.uint64, len(tokens))
        self._bits = max(1, len(number).bit_length())

    def top(self, limits: Mapping[int, float]) -> tuple[int, float] | None:
        """The first n whose most frequent n-gram, in all its occurrences, has a share above ``limits[n]``, and the share."""
        most = int(self._count_W.max(initial=0))
        widest = self._widest(most)
        for n, limit in sorted(limits.items()):
            if n > len(self._tokens):
                break
            if (n * widest + (n - 1) * self._joint * most) / self._size > limit:
                most, gram = self._most_frequent(n)
                share = most * (sum(map(len, gram)) + (n - 1) * self._joint) / self._size
                if share > limit:
                    return n, share
                widest = self._widest(most)
        return None

    def duplicates(self, limits: Mapping[int, float]) -> tuple[int, float] | None:
        """The first n whose repeated n-grams, without overlap, have a share above ``limits[n]``, and the share."""
        fitting = {n: limit for n, limit in sorted(limits.items()) if n <= len(self._tokens)}
        if not fitting or self._few_repeated(min(fitting), min(fitting.values())):
            return None
        most = 1.0
        for n, limit in fitting.items():
            if most > limit:
                starts, again = self._repeated(n)
                most = self._covered(again, n) / self._size
                if most > limit and (share := self._without_overlap(starts, n) / self._size) > limit:
                    return n, share
        return None

    def _widest(self, most: int) -> int:
        """The characters that one token can have in ``most`` places."""
        return int((np.minimum(self._count_W, most) * self._length_W).max(initial=0))

    def _most_frequent(self, n: int) -> tuple[int, Sequence[str]]:
        """How often the most frequent n-gram is there, and the n-gram; the first of several."""
        if n * self._bits > 64:
            gram, count = Counter(zip(*(self._tokens[k:] for k in range(n)), strict=False)).most_common(1)[0]
            return count, gram
        gram_N = self._keys(n, 1 << self._bits)
        ordered_N = np.sort(gram_N)
        edges = np.concatenate(([-1], np.flatnonzero(ordered_N[1:] != ordered_N[:-1]), [len(gram_N) - 1]))
        counts = edges[1:] - edges[:-1]
        count = int(counts.max())
        most = ordered_N[edges[1:][counts == count]]
        first = int(np.argmax(gram_N == most[0] if len(most) == 1 else np.isin(gram_N, most)))
        return count, self._tokens[first : first + n]

    def _few_repeated(self, n: int, limit: float) -> bool:
        ordered_N = np.sort(self._keys(n, _MULTIPLIER))
        repeated = int(np.count_nonzero(ordered_N[1:] == ordered_N[:-1]))
        longest = int(self._length_W[self._count_W > 1].max(initial=0))
        return repeated * n * longest / self._size <= limit

    def _keys(self, n: int, base: int) -> U64:
        """One number for each n-gram, ``[N - n + 1]``: its tokens' numbers as digits of ``base``, modulo 2 ** 64."""
        count = len(self._id_N) - n + 1
        key_N = self._id_N[:count].copy()
        for k in range(1, n):
            key_N *= np.uint64(base)
            key_N += self._id_N[k : k + count]
        return key_N

    def _repeated(self, n: int) -> tuple[Ints, Ints]:
        """Where the n-grams begin that are there more than once, in order; and those of them that were there before."""
        key_N = self._keys(n, _MULTIPLIER)
        order = np.argsort(key_N)
        same = key_N[order[1:]] == key_N[order[:-1]]
        starts = np.unique(np.concatenate((order[1:][same], order[:-1][same])))
        order = starts[np.argsort(key_N[starts], kind="stable")]
        return starts, order[1:][key_N[order[1:]] == key_N[order[:-1]]]

    def _covered(self, starts: Ints, n: int) -> int:
        """Characters of the tokens under n-grams that begin there."""
        covered_N = np.zeros(len(self._tokens), np.bool_)
        for k in range(n):
            covered_N[starts + k] = True
        return sum(len(self._tokens[i]) for i in np.flatnonzero(covered_N).tolist())

    def _without_overlap(self, starts: Ints, n: int) -> int:
        """From left to right: an n-gram seen before counts, and the next one begins after it."""
        seen: set[Sequence[str]] = set()
        characters, free = 0, 0
        for start in starts.tolist():
            if start < free:
                continue
            gram = self._tokens[start : start + n]
            if gram in seen:
                characters += sum(map(len, gram))
                free = start + n
            else:
                seen.add(gram)
        return characters

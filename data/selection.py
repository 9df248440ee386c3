"""What becomes of each document: training or held out, in which segment, in the tokenizer's sample.

Columns of hashes and sizes are gone through in spans, never text, and nothing of their length is held beside them; ``N`` is the
number of documents in reading order, ``K`` of some of them.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import xxhash

from data.columns import spans
from data.files import U64, key64, mix64

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
_BINS = 1 << 16


def text_hash(text: str) -> int:
    """64 bits of the text with case and white space evened out: equal for documents that count as the same.

    Two of a billion different documents collide with probability 0.03 in all; the cost is one document.
    """
    return xxhash.xxh3_64_intdigest(" ".join(text.lower().split()).encode())


def longest_of_each(cluster_N: Ints, bytes_N: Ints) -> Mask:
    """True for one document a cluster: the longest, and of equally long ones the first."""
    order = np.lexsort((-bytes_N, cluster_N))
    keep = np.zeros(len(cluster_N), np.bool_)
    keep[order[np.unique(cluster_N[order], return_index=True)[1]]] = True
    return keep


def held_out(hash_N: U64, cell_N: Ints, fraction: float, seed: int, out: Mask | None = None) -> Mask:
    """True for documents that training never sees, decided by hash, so equal texts are on one side.

    Every cell has some for training. A cell of two or more different documents has one at least held out, unless each of them
    is all that some cell, which shares it, has for training.

    Args:
        out: where to put it.
    """
    mask_N = np.empty(len(hash_N), np.bool_) if out is None else out
    cells = range(int(cell_N.max(initial=-1)) + 1)
    salt = key64("held out", seed)

    def within(cell: int) -> Iterator[tuple[U64, Mask]]:
        """Keys of the cell's documents, and whether they are held out."""
        for span in spans(len(hash_N)):
            inside = cell_N[span] == cell
            yield mix64(hash_N[span][inside] ^ salt), mask_N[span][inside]

    def put(key: int, side: bool) -> None:
        for span in spans(len(hash_N)):
            mask_N[span][mix64(hash_N[span] ^ salt) == np.uint64(key)] = side

    for span in spans(len(hash_N)):
        mask_N[span] = mix64(hash_N[span] ^ salt) < np.uint64(fraction * 2.0**64)
    for cell in cells:
        if all(held.all() for _, held in within(cell)):
            put(max((int(keys.max(initial=0)) for keys, _ in within(cell)), default=0), False)
    # Only now: what a cell holds out may be what another one has to give back.
    for cell in cells:
        if any(held.any() for _, held in within(cell)):
            continue
        extremes = [_extremes(keys[~held] for keys, held in within(each)) for each in cells]
        last = [least for least, most in extremes if least == most]
        least, most = _extremes(np.setdiff1d(keys, np.array(last, np.uint64)) for keys, _ in within(cell))
        if least <= most:
            put(least, True)
    return mask_N


def _extremes(pieces: Iterable[U64]) -> tuple[int, int]:
    """The least and the greatest; the other way round if there is none."""
    least, most = 2**64 - 1, 0
    for keys in pieces:
        if len(keys):
            least, most = min(least, int(keys.min())), max(most, int(keys.max()))
    return least, most


def partition(
    hash_N: U64,
    bytes_N: Ints,
    cell_N: Ints,
    fractions: list[float],
    seed: int,
    without: Mask | None = None,
    out: Ints | None = None,
) -> Ints:
    """Which segment of the curriculum each document belongs to, ``[N]``: within each cell by hash, in proportion to bytes.

    In the order of their hashes, documents whose middle byte lies in the first ``fractions[0]`` of the cell's bytes are segment
    0's, and so on. Equal texts are in one segment; a cell of few documents may have none in some.

    Args:
        without: documents that do not count; they are in the last segment.
        out: where to put it.
    """
    segment_N = np.empty(len(hash_N), np.int64) if out is None else out
    segment_N[:] = len(fractions) - 1
    keyed = _Keyed(hash_N, bytes_N, cell_N, key64("segment", seed), without)
    for cell in range(keyed.cells):
        total = sum(int(sizes.sum()) for _, _, sizes in keyed.within(cell))
        for border in (total * np.cumsum(fractions)[:-1]).tolist():
            key, before, size = keyed.reach(cell, border)
            for number_K, key_K, _ in keyed.within(cell):
                segment_N[number_K[key_K <= key if before + size / 2 <= border else key_K < key]] -= 1
    return segment_N


def sample(
    hash_N: U64, bytes_N: Ints, cell_N: Ints, shares: list[float], budget: int, seed: int, without: Mask | None = None
) -> Ints:
    """Sorted indices of a seeded sample of about ``budget`` bytes, each cell in proportion to its share.

    A cell that holds less than its share gives all it has.

    Args:
        without: documents that do not count.
    """
    keyed = _Keyed(hash_N, bytes_N, cell_N, key64("tokenizer sample", seed), without)
    chosen = [np.empty(0, np.int64)]
    for cell in range(keyed.cells):
        room = budget * shares[cell]
        last, before, _ = keyed.reach(cell, room)
        for number_K, key_K, bytes_K in keyed.within(cell):
            chosen.append(number_K[key_K < last])
            equal = key_K == last
            before_K = before + np.cumsum(bytes_K[equal]) - bytes_K[equal]
            chosen.append(number_K[equal][before_K < room])
            before += int(bytes_K[equal].sum())
    return np.sort(np.concatenate(chosen))


class _Keyed:
    """Documents in the order of keys drawn for them, within each cell, gone through in spans."""

    def __init__(self, hash_N: U64, bytes_N: Ints, cell_N: Ints, salt: np.uint64, without: Mask | None) -> None:
        self._hash_N, self._bytes_N, self._cell_N, self._salt, self._without = hash_N, bytes_N, cell_N, salt, without
        self.cells = int(cell_N.max(initial=-1)) + 1

    def within(self, cell: int) -> Iterator[tuple[Ints, U64, Ints]]:
        """Numbers, keys and bytes of a cell's documents, some at a time."""
        for span in spans(len(self._hash_N)):
            inside = self._cell_N[span] == cell
            if self._without is not None:
                inside &= ~self._without[span]
            number_K = span.start + np.flatnonzero(inside)
            yield number_K, mix64(self._hash_N[number_K] ^ self._salt), self._bytes_N[number_K]

    def reach(self, cell: int, target: float) -> tuple[np.uint64, float, float]:
        """The key at which the bytes of a cell's documents, in order, reach a target; bytes before it, and its own.

        By histograms of 16 bits of the key after 16 bits: nothing is sorted.
        """
        prefix, before, size_B = 0, 0.0, np.zeros(_BINS)
        for shift in (48, 32, 16, 0):
            size_B = np.zeros(_BINS)
            for _, key_K, bytes_K in self.within(cell):
                place_K = key_K >> np.uint64(shift)
                inside = place_K >> np.uint64(16) == prefix
                place_K = place_K[inside] & np.uint64(_BINS - 1)
                size_B += np.bincount(place_K.astype(np.int64), bytes_K[inside], _BINS)
            until_B = before + np.cumsum(size_B)
            place = min(int(np.searchsorted(until_B, target)), _BINS - 1)
            prefix, before = prefix * _BINS + place, float(until_B[place] - size_B[place])
        return np.uint64(prefix), before, float(size_B[place])

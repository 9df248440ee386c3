"""What becomes of each document: duplicate, training or held out, in the tokenizer's sample. Pure, over arrays of hashes.

Only hashes and sizes are gathered here, never text; ``N`` is the number of documents in reading order.
"""

import numpy as np
import numpy.typing as npt
import xxhash

from data.files import U64, key64, mix64

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


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


def held_out(hash_N: U64, cell_N: Ints, fraction: float, seed: int) -> Mask:
    """True for documents that training never sees, decided by hash, so equal texts are on one side.

    Every cell has some for training. A cell of two or more different documents has one at least held out, unless each of them
    is all that some cell, which shares it, has for training.
    """
    key_N = mix64(hash_N ^ key64("held out", seed))
    mask = key_N < np.uint64(fraction * 2.0**64)
    cells = np.unique(cell_N)
    for cell in cells:
        in_cell = cell_N == cell
        if mask[in_cell].all():
            mask[key_N == key_N[in_cell].max()] = False
    # Only now: what a cell holds out may be what another one has to give back.
    for cell in cells:
        in_cell = cell_N == cell
        if mask[in_cell].any():
            continue
        training = [key_N[(cell_N == each) & ~mask] for each in cells]
        last = [keys[0] for keys in training if keys.min() == keys.max()]
        free = np.setdiff1d(key_N[in_cell], last)
        if len(free):
            mask[key_N == free[0]] = True
    return mask


def partition(hash_N: U64, bytes_N: Ints, cell_N: Ints, fractions: list[float], seed: int) -> Ints:
    """Which segment of the curriculum each document belongs to, ``[N]``: within each cell by hash, in proportion to bytes.

    In the order of their hashes, documents whose middle byte lies in the first ``fractions[0]`` of the cell's bytes are segment
    0's, and so on. Equal texts are in one segment; a cell of few documents may have none in some.
    """
    key_N = mix64(hash_N ^ key64("segment", seed))
    borders = np.cumsum(fractions)[:-1]
    segment_N = np.zeros(len(hash_N), np.int64)
    for cell in np.unique(cell_N):
        members = np.flatnonzero(cell_N == cell)
        keys, text_of = np.unique(key_N[members], return_inverse=True)
        sizes = np.bincount(text_of, weights=bytes_N[members], minlength=len(keys))
        middles = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
        segment_N[members] = np.searchsorted(borders, middles)[text_of]
    return segment_N


def sample(hash_N: U64, bytes_N: Ints, cell_N: Ints, shares: list[float], budget: int, seed: int) -> Ints:
    """Sorted indices of a seeded sample of about ``budget`` bytes, each cell in proportion to its share.

    A cell that holds less than its share gives all it has.
    """
    key_N = mix64(hash_N ^ key64("tokenizer sample", seed))
    chosen: list[Ints] = []
    for cell in np.unique(cell_N):
        members = np.flatnonzero(cell_N == cell)
        members = members[np.argsort(key_N[members], kind="stable")]
        before = np.cumsum(bytes_N[members]) - bytes_N[members]
        chosen.append(members[before < budget * shares[int(cell)]])
    return np.sort(np.concatenate(chosen))

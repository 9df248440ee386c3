"""Patterns that a search has found, kept in files: it takes seconds for fine shares of many cells, and every worker needs them.

A pattern is a function of the table, so it does not matter who writes it or whether one is found: what cannot be read, or is
damaged, is searched for again, and where nothing can be written every worker searches.

Legend: C cells, K batches in the period after which the pattern repeats.
"""

import json
import logging
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import xxhash

from data.files import write_atomically
from data.table import Ints

log = logging.getLogger(__name__)

SEARCH_VERSION = 1
"""Of ``data/beam.py`` and ``data/apportion.py``: another one wherever they find another pattern for some table."""
PATTERNS = "patterns"
"""The folder within a prepared data set."""


def pattern_name(shares: Sequence[Fraction], size: int, lines: Sequence[tuple[str, str]]) -> str:
    """The file of the pattern of these cells in batches of ``size`` rows."""
    key = json.dumps([SEARCH_VERSION, size, [str(share) for share in shares], list(lines)])
    return xxhash.xxh3_128_hexdigest(key.encode())


def kept(path: Path, shape_KC: tuple[int, int], search: Callable[[], Ints]) -> Ints:
    """The extra rows of each cell in each batch, ``[K, C]``, of the file or else of ``search``, which are written to it."""
    extra_KC = _read(path, shape_KC)
    if extra_KC is None:
        extra_KC = search()
        content = extra_KC.astype(np.int8).tobytes()
        try:
            write_atomically(path, xxhash.xxh3_128_digest(content) + content)
        except OSError as error:
            log.info("the order that was found is not kept for other workers: %s", error)
    return extra_KC


def _read(path: Path, shape_KC: tuple[int, int]) -> Ints | None:
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    digest, content = whole[:16], whole[16:]
    if xxhash.xxh3_128_digest(content) != digest or len(content) != shape_KC[0] * shape_KC[1]:
        log.warning("the order kept in %s is damaged and searched for again", path)
        return None
    return np.frombuffer(content, np.int8).reshape(shape_KC).astype(np.int64)

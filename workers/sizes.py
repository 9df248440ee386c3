"""Sizes of memory as people write them."""

import re

UNITS = {"": 30, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])i?B?|(B))?\s*(?:/.*|per .*)?", re.IGNORECASE)


def parse_bytes(size: str | float) -> int | None:
    """``80GB/H100``, ``1.5 TiB per node``, ``80``: bytes, or None for what is no size. Units are binary, as memory is built; a
    number alone counts GiB, or bytes from 2**20 on."""
    found = _SIZE.fullmatch(str(size))
    if found is None:
        return None
    number, unit = float(found[1]), (found[2] or found[3] or "").upper()
    return int(number if unit == "" and number >= 2**20 else number * 2 ** UNITS[unit])


def in_words(number: float) -> str:
    """``512 B``, ``3.4 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"

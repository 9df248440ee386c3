"""Text as the patterns of personal data read it: what is written for a blank, a hyphen or an ASCII character is one."""

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

# No-break spaces and those of all widths; hyphens and the en dash; full width: letters, digits and what joins them.
_BLANKS = "\u00a0\u202f\u205f" + "".join(map(chr, range(0x2000, 0x200B)))
_HYPHENS = "\u2010\u2011\u2012\u2013"
_ASCII = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+-.@()"
_FORMS = (
    {blank.encode(): b" " for blank in _BLANKS}
    | {hyphen.encode(): b"-" for hyphen in _HYPHENS}
    | {chr(ord(one) + 0xFEE0).encode(): one.encode() for one in _ASCII}
)

FORMS = b"|".join(_FORMS)
"""A pattern in Latin-1 mode."""


def fold(text: bytes, forms: Any) -> tuple[bytes, Callable[[int], int] | None]:
    """
    Args:
        forms: ``FORMS``, compiled.

    Returns:
        (the text with ASCII in place of such forms, from a border between two of its bytes to that in ``text``). None: they
        are the same.
    """
    if text.isascii():
        return text, None
    pieces: list[bytes] = []
    borders: list[int] = []
    behind: list[int] = []
    at = size = 0
    for match in forms.finditer(text):
        start, end = match.span()
        pieces += [text[at:start], _FORMS[text[start:end]]]
        at, size = end, size + start - at + 1
        borders.append(size)
        behind.append(at - size)
    if not borders:
        return text, None

    def back(border: int) -> int:
        before = bisect_right(borders, border)
        return border + (behind[before - 1] if before else 0)

    return b"".join([*pieces, text[at:]]), back

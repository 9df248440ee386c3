"""The beginning of a document, as the report shows it of what was dropped.

A report is read and passed on by more people than the sources, and most of what is dropped never came to a stage that looks for
personal data: it is always looked for here.
"""

from functools import lru_cache

from data.stages.personal_finder import KINDS, Finder, redacted
from data.stages.text import names_chinese

EXCERPT_CHARACTERS = 200
# An address may begin before the end of what is shown, and is known when it is seen whole: the longest has 254 characters.
_SEEN_CHARACTERS = EXCERPT_CHARACTERS + 254
_PLACEHOLDERS = {kind: f"[{kind.upper()}]".encode() for kind in KINDS}


def excerpt(text: str, language: str) -> str:
    """About its first 200 characters, placeholders for personal data among them."""
    seen, shown = text[:_SEEN_CHARACTERS].encode(), len(text[:EXCERPT_CHARACTERS].encode())
    found = [find for find in _finder()(seen, names_chinese(language)) if find.start < shown]
    return redacted(seen[: max([shown, *(find.end for find in found)])], found, _PLACEHOLDERS).decode()


@lru_cache(maxsize=1)
def _finder() -> Finder:
    return Finder(KINDS, special_addresses=False, stage="personal_data")

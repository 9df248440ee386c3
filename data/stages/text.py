"""Characters and lines, as the rules count them; words are in ``data/stages/words.py``.

Chinese (and Japanese) has no spaces between words: such a document is read by characters, and one and a half of them stand for
a word where a published number is carried over. Thai and others have no such number, and most of them no sign that ends a
sentence: the rules of words and of sentences do not apply to them.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from data.documents import Document
from data.scripts import spaceless_beside_chinese

# Han and kana.
_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
_SHARE = 0.3
# Cantonese and Wu are Chinese: ``yue`` and ``wuu`` belong to the macrolanguage ``zho`` (ISO 639-3).
_CHINESE = frozenset(("zh", "yue", "wuu"))
# Thai, Lao, Khmer, Burmese, Tibetan, Dzongkha.
_OTHERS = frozenset(("th", "lo", "km", "my", "bo", "dz"))
_WITHOUT_SPACES = _CHINESE | _OTHERS | {"ja"}

SENTENCE_ENDS = ".!?。！？．｡؟۔।॥።။។៕։‼⁇⁈⁉‽"
"""What ends a sentence, in the living scripts (Unicode's Sentence_Terminal)."""
CHINESE_LINE_ENDS = "。！？!?.；…"
CLOSING = "\"'”’」』）)》】〉"
"""May follow the end of a sentence."""


@lru_cache(maxsize=1)
def characters(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())


@lru_cache(maxsize=1)
def cjk_share(text: str) -> float:
    """Han and kana among the characters that are not white space."""
    if text.isascii() or _CJK.search(text) is None:
        return 0.0
    return sum(map(len, _CJK.findall(text))) / len(characters(text))


def primary(language: str) -> str:
    """``zh`` of ``zh-Hant``."""
    return language.lower().partition("-")[0]


def names_chinese(language: str) -> bool:
    """Whether a language is Chinese as it is stated: ``zh``, ``zh-Hant``, ``yue``."""
    return primary(language) in _CHINESE


def is_chinese(document: Document) -> bool:
    """Whether the Chinese rules apply: by the document's language, or more than three characters in ten are Han or kana."""
    return names_chinese(document.language) or cjk_share(document.text) > _SHARE


def by_characters(language: str) -> bool:
    """Whether a language, as it is stated, is written without spaces between words."""
    return primary(language) in _WITHOUT_SPACES


def has_no_words(document: Document) -> bool:
    """Whether no rule of words or of sentences applies: it is written without spaces, by its language or more than three
    characters in ten, and is not Chinese."""
    others = primary(document.language) in _OTHERS or _others_share(document.text) > _SHARE
    return others and not is_chinese(document)


@lru_cache(maxsize=1)
def _others_share(text: str) -> float:
    found = spaceless_beside_chinese(text)
    return found / len(characters(text)) if found else 0.0


def nonblank_lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line and not line.isspace()]


def duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts were there before, and their characters."""
    distinct = set(parts)
    if len(distinct) == len(parts):
        return 0, 0
    return len(parts) - len(distinct), sum(map(len, parts)) - sum(map(len, distinct))


def below(value: float, least: float | None) -> bool:
    return least is not None and value < least


def above(value: float, most: float | None) -> bool:
    return most is not None and value > most


def figure(value: float) -> str:
    """A value as the detail of a drop."""
    return f"{value:.4g}"

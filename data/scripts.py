"""Scripts that write no spaces between words, told by a text's characters whatever language it is said to have."""

import re

_HAN_AND_KANA = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Thai, Lao, Tibetan; Burmese; Khmer.
_OTHERS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"

_WORD = re.compile(r"\w+")
# Looked for first: most texts have none, and it is faster than to ask for letters alone.
_SPACELESS = re.compile(rf"[{_HAN_AND_KANA}{_OTHERS}]")
_LETTER = re.compile(rf"(?!\W){_SPACELESS.pattern}")
_UNIT = re.compile(rf"[^\W{_HAN_AND_KANA}{_OTHERS}]+|{_LETTER.pattern}")
_OF_OTHERS = re.compile(rf"[{_OTHERS}]+")


def words_and_characters(text: str) -> list[str]:
    """What texts are compared by, in reading order: words and, of scripts without spaces, single characters."""
    return _WORD.findall(text) if _SPACELESS.search(text) is None else _UNIT.findall(text)


def spaceless_letters(text: str) -> int:
    """How many letters and digits of scripts without spaces a text has."""
    return 0 if text.isascii() or _SPACELESS.search(text) is None else len(_LETTER.findall(text))


def spaceless_beside_chinese(text: str) -> int:
    """How many characters of the scripts without spaces that are neither Han nor kana, vowels above and below among them."""
    return 0 if text.isascii() else sum(map(len, _OF_OTHERS.findall(text)))

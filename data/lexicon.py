"""Words of a field whose borders tokens respect, and where a text holds them.

SentencePiece cuts out its user-defined symbols before it looks for pieces (Kudo and Richardson, EMNLP 2018, and its
``doc/special_symbols.md``); its trainer lets no other piece hold two scripts, or a digit beside something else, or a blank
anywhere but in front. So a word whose ends are letters of a script that is written with blanks is respected without a symbol
wherever it stands by itself; the others become symbols.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.errors import SourceError
from data.spec import CONTROL_PIECES, SYMBOL_SPACE

POINTER = "/tokenizer/lexicon"
_MOST_CHARACTERS = 128
_WITH_BLANKS = frozenset({"LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN", "HEBREW", "ARABIC", "DEVANAGARI"})
_LETTERS = frozenset({"Lu", "Ll", "Lt", "Lo"})


def read_lexicon(path: str) -> tuple[str, ...]:
    """The words of a file, one a line, in its order and each once, in Unicode NFC as the stage ``normalise`` leaves text.

    Raises:
        SourceError: the file cannot be read, is no UTF-8, holds no word, or a line that is no word; the message names the line.
    """
    try:
        lines = Path(path).expanduser().read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", pointer=POINTER) from error
    words: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        try:
            word = unicodedata.normalize("NFC", line.decode()).strip()
        except UnicodeDecodeError as error:
            raise SourceError(f"{path}:{number}: not UTF-8", pointer=POINTER) from error
        if fault := _fault(word):
            raise SourceError(f"{path}:{number}: {fault}", pointer=POINTER)
        if word:
            words[word] = None
    if not words:
        raise SourceError(f"{path} holds no word", pointer=POINTER)
    return tuple(words)


def _fault(word: str) -> str:
    if len(word) > _MOST_CHARACTERS:
        return f"a line of {len(word)} characters is no word: at most {_MOST_CHARACTERS}, one word a line"
    if any(unicodedata.category(c) == "Cc" for c in word) or SYMBOL_SPACE in word:
        return "a word holds no control characters, tabs or U+2581"
    return f"{word} is a control piece" if CONTROL_PIECES.fullmatch(word) else ""


def needs_symbol(word: str) -> bool:
    """Whether pieces could cross an end of the word where it stands by itself."""
    return not (_is_end(word[0]) and _is_end(word[-1]))


def _is_end(c: str) -> bool:
    if c.isascii():
        return c.isalnum()
    return unicodedata.category(c) in _LETTERS and unicodedata.name(c, "").partition(" ")[0] in _WITH_BLANKS


class Matcher:
    """Finds some strings in a text: the first, of those that begin together the longest, then on from its end."""

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = frozenset(strings)
        lengths: dict[str, set[int]] = {}
        for string in self._strings:
            lengths.setdefault(string[0], set()).add(len(string))
        self._lengths = {first: sorted(each, reverse=True) for first, each in lengths.items()}

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        end = 0
        for start, first in enumerate(text):
            if start < end or first not in self._lengths:
                continue
            for length in self._lengths[first]:
                if (found := text[start : start + length]) in self._strings:
                    end = start + len(found)
                    yield start, end
                    break

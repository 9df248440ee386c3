"""Words and symbols, as the rules count them.

Gopher's paper does not say how it splits; the code that made FineWeb makes words of the Penn Treebank's kind (Marcus, Santorini
and Marcinkiewicz 1993), and what the thresholds do depends on that. So text is split:

- at white space;
- each symbol at an edge of what is between stands alone (``("so",`` is five), a row of points is one; a period stays with an
  initial or an abbreviation (``U.S.``, ``Dr.``);
- a contraction is two words (``do n't``, ``it 's``, ``can not``), and its second half is one where it stands by itself;
- inside, letters are parted by hyphens, dashes, colons, slashes, commas and equals signs, sentences by their period
  (``end.Start``), digits by signs (``3-4``). Other symbols inside belong to the word: ``1,000.5``, ``os.path``, ``f(x``;
  addresses and names that look like a host's (``json.JSONDecoder.decode``) are one.

The same few words make up most of any text, so what became of them is remembered.
"""

import re
from functools import lru_cache
from itertools import chain

from data.remembered import Remembered

# Punctuation and symbols of the living scripts, pictures included; not the underscore, which belongs to names.
_SYMBOL = (
    r"!-/:-@\[-\^`{-~¡-©«¬®-±´¶-¸»¿×÷،؛؟۔।॥‐-‧‰-⁞₠-⃏←-⯿、。〃〈-〠〰！-／：-＠［-｀｛-･"
    "\U0001f000-\U0001faff"
)
_SYMBOLIC = re.compile(rf"[{_SYMBOL}_]+")
_LETTER = re.compile(r"[^\W\d_]")

# What stands alone at an edge. A hyphen, slash and the like there is part of the word: -1, a/, ~x.
_EDGES = frozenset(re.findall(rf"(?![-/\\|^@~+])[{_SYMBOL}_]", "".join(map(chr, range(0x1FB00)))))
_MARK = re.compile(r"\.{2,}|''|.")
_BEGINNING = re.compile(r"['’](?:d|em|ll|m|re|s|ve)(?!\w)|(?<!\.)\.\w", re.IGNORECASE)
_VERBS = "ai|are|ca|could|dare|did|do|does|had|has|have|is|may|might|must|need|ought|sha|should|was|were|wo|would"
_PRONOUNS = "i|you|he|she|it|we|they|this|that|there|here|who|what|when|where|why|how"
_CONTRACTION = re.compile(
    rf"(?:{_VERBS})(?=n['’]t$)|(?:{_PRONOUNS})(?=['’](?:d|ll|m|re|ve)$)|(?:{_VERBS})(?=['’]ve$)|.+(?=['’]s$)|can(?=not$)",
    re.IGNORECASE,
)
_TITLES = "Mrs?|Ms|Messrs|Dr|Prof|Rev|St|Mt|Jr|Sr|Gen|Gov|Sen|Rep|Lt|Col|Capt|Adm|Co|Corp|Inc|Ltd|Bros|vs"
_ABBREVIATION = re.compile(rf"(?:[^\W\d_]\.)*[^\W\d_]|{_TITLES}")
_HOST = re.compile(r"\w+(?:\.\w+)*\.[a-z]{2,}")
_INSIDE = re.compile(
    r"(\.{2,}|…|(?<=[^\W_])(?:-{1,3}|[‐-—~:<>=/])(?=[^\W\d_])|(?<=[^\W\d_]),(?=[^\W\d_])"
    r"|(?<=[a-z'\"])\.(?=[A-Z'\"])|(?<=\d)[-+*^](?=[\d-]))"
)


@lru_cache(maxsize=1)
def tokens(text: str) -> tuple[str, ...]:
    """Words and symbols in order. The last text's are kept: several rules ask for them in turn."""
    return tuple(chain.from_iterable(_parts.of(text.split())))


def _split(piece: str) -> tuple[str, ...]:
    """What stands between white space."""
    if piece.isalpha() and piece.lower() != "cannot":
        return (piece,)
    start, end = 0, len(piece)
    while start < end and piece[start] in _EDGES and not _BEGINNING.match(piece, start):
        start += 1
    while start < end and piece[end - 1] in _EDGES:
        end -= 1
    if piece.startswith(".", end) and not piece.startswith("..", end) and _ABBREVIATION.fullmatch(piece, start, end):
        end += 1
    return (*_MARK.findall(piece, 0, start), *_words(piece[start:end]), *_MARK.findall(piece, end))


_parts = Remembered(_split)


def _words(piece: str) -> list[str]:
    """Of a piece without symbols at its edges."""
    if "://" in piece or piece.startswith("www.") or _HOST.fullmatch(piece):
        return [piece]
    contraction = _CONTRACTION.match(piece)
    end = contraction.end() if contraction else len(piece)
    return [word for word in (*_INSIDE.split(piece[:end]), piece[end:]) if word]


def is_symbol(token: str) -> bool:
    return _SYMBOLIC.fullmatch(token) is not None


def has_letter(token: str) -> bool:
    return _LETTER.search(token) is not None

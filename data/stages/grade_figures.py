"""What a text falls short of, by rules: the same for every text of a language, and nothing learned.

Each figure falls short by nothing at its good value, wholly at its bad one, and in proportion between them. Bad values are the
published thresholds at which documents are dropped (G: Gopher, Rae et al. 2021, arXiv 2112.11446; F: FineWeb, Penedo et al.
2024, arXiv 2406.17557), but of stop words; good ones are our own, and so are those for Chinese, by 1.5 characters for a word:

    figure                                     words: good   bad          Chinese: good   bad
    size                                       100 words     50 (G)       150 characters  75
    words with a letter; Han and kana          0.92          0.8 (G)      0.6             0.3
    mean word length, in characters            4 to 8        3, 10 (G)    none
    stop words, share of the words             0.15          0.03         0.03            0.005 of the characters
    hash symbols and ellipses, a word          0.02          0.1 (G)      0.02            0.1 a character
    lines that end a sentence                  0.5           0.12 (F)     0.5             0.12
    lines of fewer than 30 (9) characters      0.3           0.67 (F)     0.3             0.67
    characters in repeated lines               0.05          0.2 (G)      0.05            0.2
    n-grams that were there before             0.05 of 5     0.15 (G)     0.05 of 8       0.15

Text without words, such as Thai, falls short by lines alone, and not by how they end.
"""

from collections import Counter

import numpy as np

from data.classifier.features import Floats
from data.dedup.shingles import ngram_hashes
from data.documents import Document
from data.files import U64
from data.stages.fineweb import ends_sentence
from data.stages.text import characters, cjk_share, duplicates, has_no_words, nonblank_lines, primary
from data.stages.words import has_letter, is_symbol, tokens

FIGURES = (
    *("size", "letters", "word_length", "stop_words", "symbols"),
    *("line_ends", "short_lines", "repeated_lines", "repeated_ngrams"),
)
# Gopher's list for English; the commonest words that only hold a sentence together for Chinese, classical ones among them.
_STOP_WORDS = {
    "en": frozenset(("the", "be", "to", "of", "and", "that", "have", "with")),
    "zh": frozenset("的了是在不有和也就与與而之其以于於为為我他这這人一"),
}


def shortfalls(document: Document, unit_N: U64, chinese: bool) -> Floats:
    """From 0 to 1 each, in the order of ``FIGURES``.

    Args:
        unit_N: hashes of the words or, in Chinese, characters.
    """
    if has_no_words(document):
        _, *lines = _lines(document.text, chinese)
        return np.array((0.0, 0.0, 0.0, 0.0, 0.0, 0.0, *lines, 0.0))
    by_words = _chinese(document.text) if chinese else _words(document)
    return np.array((*by_words, *_lines(document.text, chinese), _repeated(unit_N, 8 if chinese else 5)))


def _short(value: float, good: float, bad: float) -> float:
    return min(max((value - good) / (bad - good), 0.0), 1.0)


def _words(document: Document) -> tuple[float, ...]:
    # Of most words there are many, and of different ones few.
    times = Counter(tokens(document.text))
    for symbol in [token for token in times if not token.isalpha() and is_symbol(token)]:
        del times[symbol]
    number = times.total()
    count = max(number, 1)
    length = sum(len(word) * n for word, n in times.items()) / count
    spelled = sum(n for word, n in times.items() if word.isalpha() or has_letter(word)) / count
    stop_words = _STOP_WORDS.get(primary(document.language))
    stopped = 1.0 if stop_words is None else sum(n for word, n in times.items() if word.lower() in stop_words) / count
    return (
        _short(number, 100, 50),
        _short(spelled, 0.92, 0.8),
        max(_short(length, 4, 3), _short(length, 8, 10)),
        _short(stopped, 0.15, 0.03),
        _short(_symbols(document.text) / count, 0.02, 0.1),
    )


def _chinese(text: str) -> tuple[float, ...]:
    every = characters(text)
    count = max(len(every), 1)
    stopped = sum(map(every.count, _STOP_WORDS["zh"])) / count
    return (
        _short(len(every), 150, 75),
        _short(cjk_share(text), 0.6, 0.3),
        0.0,
        _short(stopped, 0.03, 0.005),
        _short(_symbols(text) / count, 0.02, 0.1),
    )


def _symbols(text: str) -> int:
    return text.count("#") + text.count("...") + text.count("…")


def _lines(text: str, chinese: bool) -> tuple[float, ...]:
    lines = nonblank_lines(text)
    if not lines:
        return 1.0, 1.0, 0.0
    ended = sum(ends_sentence(line, chinese) for line in lines) / len(lines)
    short = sum(len(line) < (9 if chinese else 30) for line in lines) / len(lines)
    repeated = duplicates(lines)[1] / sum(map(len, lines))
    return _short(ended, 0.5, 0.12), _short(short, 0.3, 0.67), _short(repeated, 0.05, 0.2)


def _repeated(unit_N: U64, n: int) -> float:
    if len(unit_N) < n:
        return 0.0
    ngrams = np.sort(ngram_hashes(unit_N, n))
    return _short(float(np.count_nonzero(ngrams[1:] == ngrams[:-1])) / len(ngrams), 0.05, 0.15)

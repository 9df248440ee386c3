"""Gopher's quality rules (Rae et al. 2021, arXiv 2112.11446, section A.1.1): drop what

    has fewer than 50 or more than 100,000 words; a mean word length outside 3 to 10 characters;
    a symbol-to-word ratio above 0.1 for either the hash symbol or the ellipsis;
    more than 90% of lines starting with a bullet point, or more than 30% ending with an ellipsis;
    fewer than 80% of words with an alphabetic character;
    fewer than two of the words the, be, to, of, and, that, have, with.

A symbol is no word here. FineWeb's code counts symbols as words in the ratios of symbols and of alphabetic words, and
so drops prose for its commas: ``symbols_are_words`` does the same. Chinese has no words between spaces: its rules count
characters, and the share that is Han or kana stands for the rules of words. Thai and the like have the rules of lines alone.
"""

from collections import Counter
from typing import Literal

from pydantic import Field

from data.documents import Document
from data.spec_base import Share, Spec
from data.stages.base import Drop, StageSettings
from data.stages.text import above, below, characters, cjk_share, figure, has_no_words, is_chinese, nonblank_lines, primary
from data.stages.words import has_letter, is_symbol, tokens

_ENGLISH = ("the", "be", "to", "of", "and", "that", "have", "with")
_BULLETS = ("•", "-", "*", "·", "●", "‣")
_ELLIPSES = ("...", "…", "。。。")


class ChineseQuality(Spec):
    """Rules in characters, white space not among them. The defaults are our own: Gopher's, 1.5 characters for a word."""

    min_characters: int | None = Field(default=75, ge=0)
    max_characters: int | None = Field(default=150_000, ge=1)
    min_cjk: Share | None = 0.3
    """Share of characters that are Han or kana."""
    max_symbols: Share | None = 0.1
    """Hash symbols a character, and ellipses a character."""


class GopherQualitySpec(StageSettings):
    """Drops what does not read like prose: by words, symbols and lines (Gopher)."""

    stage: Literal["gopher_quality"] = "gopher_quality"
    skip_domains: tuple[str, ...] = ("code",)
    """The rules are for text that people read."""
    min_words: int | None = Field(default=50, ge=0)
    max_words: int | None = Field(default=100_000, ge=1)
    min_mean_word_characters: float | None = Field(default=3, ge=0)
    max_mean_word_characters: float | None = Field(default=10, ge=0)
    max_symbols: float | None = Field(default=0.1, ge=0)
    """Hash symbols a word, and ellipses a word."""
    max_bullet_lines: Share | None = 0.9
    max_ellipsis_lines: Share | None = 0.3
    min_alphabetic_words: Share | None = 0.8
    symbols_are_words: bool = False
    """Count commas and the like as words in ``max_symbols`` and ``min_alphabetic_words``."""
    min_stop_words: int | None = Field(default=2, ge=0)
    """Different ones of the language's ``stop_words``; a language without a list has no such rule."""
    stop_words: dict[str, tuple[str, ...]] = Field(default={"en": _ENGLISH})
    """By language; ``en`` stands for ``en-US`` too."""
    chinese: ChineseQuality = ChineseQuality()
    """In place of the rules of words, for text without spaces."""


class GopherQuality:
    def __init__(self, spec: GopherQualitySpec) -> None:
        self._spec = spec
        self._stop_words: dict[str, frozenset[str]] = {}
        for stated, words in spec.stop_words.items():
            language = primary(stated)
            self._stop_words[language] = self._stop_words.get(language, frozenset()).union(words)

    def __call__(self, document: Document) -> Document | Drop:
        return self._text(document) or self._lines(document.text) or document

    def _text(self, document: Document) -> Drop | None:
        if has_no_words(document):
            return None
        return self._chinese(document) if is_chinese(document) else self._words(document)

    def _words(self, document: Document) -> Drop | None:
        spec, all_words = self._spec, tokens(document.text)
        # Most words are letters alone; of the others there are few different ones.
        others = Counter([word for word in all_words if not word.isalpha()])
        symbols = {word: times for word, times in others.items() if is_symbol(word)}
        count = len(all_words) - sum(symbols.values())
        if below(count, spec.min_words):
            return Drop("few_words", str(count))
        if above(count, spec.max_words):
            return Drop("many_words", str(count))
        mean = (sum(map(len, all_words)) - sum(len(word) * times for word, times in symbols.items())) / max(1, count)
        if below(mean, spec.min_mean_word_characters):
            return Drop("short_words", figure(mean))
        if above(mean, spec.max_mean_word_characters):
            return Drop("long_words", figure(mean))
        if spec.symbols_are_words:
            count = len(all_words)
        if (drop := _symbols(document.text, count, spec.max_symbols)) is not None:
            return drop
        spelled = len(all_words) - sum(times for word, times in others.items() if not has_letter(word))
        alphabetic = spelled / max(1, count)
        if below(alphabetic, spec.min_alphabetic_words):
            return Drop("few_alphabetic_words", figure(alphabetic))
        stop_words = self._stop_words.get(primary(document.language))
        if stop_words is not None and below(found := len(stop_words.intersection(all_words)), spec.min_stop_words):
            return Drop("few_stop_words", str(found))
        return None

    def _chinese(self, document: Document) -> Drop | None:
        spec, count = self._spec.chinese, len(characters(document.text))
        if below(count, spec.min_characters):
            return Drop("few_characters", str(count))
        if above(count, spec.max_characters):
            return Drop("many_characters", str(count))
        if below(share := cjk_share(document.text), spec.min_cjk):
            return Drop("few_chinese_characters", figure(share))
        return _symbols(document.text, count, spec.max_symbols)

    def _lines(self, text: str) -> Drop | None:
        spec, lines = self._spec, nonblank_lines(text)
        most = max(1, len(lines))
        bullets = sum(line.lstrip().startswith(_BULLETS) for line in lines) / most
        if above(bullets, spec.max_bullet_lines):
            return Drop("bullet_lines", figure(bullets))
        if "..." in text or "…" in text or "。。。" in text:
            ellipses = sum(line.rstrip().endswith(_ELLIPSES) for line in lines) / most
            if above(ellipses, spec.max_ellipsis_lines):
                return Drop("ellipsis_lines", figure(ellipses))
        return None


def _symbols(text: str, words: int, most: float | None) -> Drop | None:
    hashes = text.count("#") / max(1, words)
    if above(hashes, most):
        return Drop("hash_symbols", figure(hashes))
    ellipses = sum(map(text.count, _ELLIPSES)) / max(1, words)
    return Drop("ellipses", figure(ellipses)) if above(ellipses, most) else None

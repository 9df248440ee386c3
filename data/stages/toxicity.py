"""Violence, sexual content, hate, self-harm and offers of crimes, scored by lexicon.

The lists in ``data/lexicons`` are Manta's own: one file a dimension and language, each line a weight and its terms. A term of
weight 4 decides in a short text, one of 1 only adds. Words that medicine, news and novels need are left out or weigh little: C4
(Raffel et al., arXiv 1910.10683) drops a page for one word of its list, and with it much that is no such thing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from data.documents import Document
from data.spec_base import Spec
from data.stages.base import Drop
from data.stages.libraries import library

DIMENSIONS = ("violence", "sexual", "hate", "self_harm", "illegal")
LANGUAGES = ("en", "zh")
LEXICONS = Path(__file__).parents[1] / "lexicons"

Limit = Annotated[float | None, Field(gt=0)]


class Limits(Spec):
    """Scores from which on a document is dropped, one a dimension. None: this dimension drops nothing."""

    violence: Limit = 15
    sexual: Limit = 15
    hate: Limit = 15
    self_harm: Limit = 15
    illegal: Limit = 15


class ChineseLimits(Limits):
    """The same for Chinese, by characters."""

    violence: Limit = 8
    sexual: Limit = 8
    hate: Limit = 8
    self_harm: Limit = 8
    illegal: Limit = 8


class ToxicitySpec(Spec):
    """Drops documents whose weighted hits of a lexicon are dense: violence, sexual, hate, self-harm, illegal."""

    stage: Literal["toxicity"] = "toxicity"
    limits: Limits = Limits()
    """In weighted hits per 1,000 words. Terms of all languages count in every document."""
    limits_zh: ChineseLimits = ChineseLimits()
    """For Chinese documents, in weighted hits per 1,000 characters without white space."""
    min_words: int = Field(default=100, ge=1)
    """A shorter document counts as one of this many words, so that a single word does not decide over a sentence."""
    min_characters_zh: int = Field(default=200, ge=1)
    """The same for Chinese documents, in characters."""


class Toxicity:
    def __init__(self, spec: ToxicitySpec) -> None:
        ahocorasick = library("ahocorasick_rs", spec.stage)
        self._spec = spec
        terms: dict[str, list[float]] = {}
        for number, dimension in enumerate(DIMENSIONS):
            for language in LANGUAGES:
                for term, weight in lexicon(dimension, language):
                    terms.setdefault(term, [0.0] * len(DIMENSIONS))[number] = weight
        self._weights = list(terms.values())
        # A term of letters with spaces between words must stand alone; Chinese has no such borders.
        self._whole_words = [term.isascii() for term in terms]
        # Of the library's automata the fastest on English and Chinese, and these lists are small.
        self._automaton = ahocorasick.AhoCorasick(list(terms), implementation=ahocorasick.Implementation.DFA)

    def __call__(self, document: Document) -> Document | Drop:
        text = _evened(document.text)
        sums = self._sums(text)
        if sums is None:
            return document
        if document.language == "zh":
            limits: Limits = self._spec.limits_zh
            size = max(len(text) - text.count(" "), self._spec.min_characters_zh)
        else:
            limits, size = self._spec.limits, max(text.count(" ") + 1, self._spec.min_words)
        scores = {dimension: 1000 * total / size for dimension, total in zip(DIMENSIONS, sums, strict=True) if total}
        over = {
            dimension: score / limit
            for dimension, score in scores.items()
            if (limit := getattr(limits, dimension)) is not None and score >= limit
        }
        if not over:
            return document
        worst = max(over, key=over.__getitem__)
        return Drop(f"toxic_{worst}", ", ".join(f"{dimension} {score:.1f}" for dimension, score in scores.items()))

    def _sums(self, text: str) -> list[float] | None:
        """Weights of the terms in ``text`` (lower case, single spaces), by dimension. Of terms that overlap the first counts,
        of those that begin together the longest."""
        found = self._automaton.find_matches_as_indexes(text, overlapping=True)
        if not found:
            return None
        whole = [hit for hit in found if not self._whole_words[hit[0]] or _stands_alone(text, hit[1], hit[2])]
        sums, at = [0.0] * len(DIMENSIONS), 0
        for number, start, end in sorted(whole, key=lambda hit: (hit[1], -hit[2])):
            if start >= at:
                at = end
                sums = [total + weight for total, weight in zip(sums, self._weights[number], strict=True)]
        return sums if at else None


def _evened(text: str) -> str:
    """Lower case, single spaces; faster than to split and join."""
    text = text.lower()
    for space in "\n\t\u00a0\u3000":
        text = text.replace(space, " ")
    while "  " in text:
        text = text.replace("  ", " ")
    return text.strip()


def _stands_alone(text: str, start: int, end: int) -> bool:
    return not (start and _of_a_word(text[start - 1])) and not (end < len(text) and _of_a_word(text[end]))


def _of_a_word(character: str) -> bool:
    # Chinese text puts Latin words between its characters without a space. U+2E80 is where CJK begins.
    return character < "\u2e80" and character.isalnum()


def lexicon(dimension: str, language: str) -> Iterator[tuple[str, float]]:
    """(term, weight), in lower case."""
    for line in (LEXICONS / f"{dimension}.{language}.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            weight, _, terms = line.partition(":")
            for term in terms.split(","):
                yield term.strip(), float(weight)

"""C4's rules (Raffel et al. 2020, arXiv 1910.10683, section 2.2, and the code that made it), which take lines out of documents:

    lines go that do not end in a terminal punctuation mark (. ! ? or a quotation mark) or end in an ellipsis; that have fewer
    than 3 words (5 in the code); with a word of more than 1,000 characters; with "javascript"; with a phrase of policies;
    documents go with "lorem ipsum"; with a curly bracket; with fewer than 5 sentences (3 in the code) in what is left.

Marks of citation ([3], [edit], [citation needed]) are removed, but count as words of their line. A kept line has no blank ends;
lines that go, or were such marks alone, leave no gap. The order is lorem ipsum, javascript, bracket, policies: a line with both
a phrase and a bracket takes its document with it. FineWeb uses all of these but terminal punctuation. Text without words, such
as Thai, has no rules of words, of terminal punctuation and of sentences.
"""

import re
from typing import Literal

from pydantic import Field

from data.documents import Document
from data.spec_base import Spec
from data.stages.base import Drop, StageSettings
from data.stages.text import CHINESE_LINE_ENDS, CLOSING, SENTENCE_ENDS, below, has_no_words, is_chinese

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_LINE_ENDS = (".", "?", "!", '"', "'", "”", "’")
_ELLIPSES = ("...", "…")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_CHINESE_POLICIES = (
    *("隐私政策", "隱私政策", "隐私权政策", "隱私權政策"),
    *("使用条款", "使用條款", "服务条款", "服務條款", "使用cookie"),
)
_OPENING = "[\"'“‘«「『《（(\\[¿¡]*"
# Each run is taken whole, once: an end of which nothing begins must not be tried again from its middle.
_NEXT_SENTENCE = re.compile(rf"[{re.escape(SENTENCE_ENDS)}][{re.escape(CLOSING)}]*+\s++(?={_OPENING}+\w)")
_NEXT_CHINESE_SENTENCE = re.compile(rf"(?<![。！？!?])[。！？!?]++[{re.escape(CLOSING)}]*+\s*+(?={_OPENING}+\w)")


class ChineseC4(Spec):
    """In place of words and of English phrases. The defaults are our own: 1.5 characters for a word."""

    min_line_characters: int | None = Field(default=5, ge=0)
    policy_phrases: tuple[str, ...] = _CHINESE_POLICIES


class C4Spec(StageSettings):
    """Takes out lines that are no sentences, and drops what then has too few (C4)."""

    stage: Literal["c4"] = "c4"
    skip_domains: tuple[str, ...] = ("code",)
    """The rules are for text that people read."""
    require_terminal_punctuation: bool = True
    remove_citations: bool = True
    min_line_words: int | None = Field(default=3, ge=0)
    max_word_characters: int | None = Field(default=1000, ge=1)
    """A line with a longer word goes. Not for Chinese, which has no spaces between words."""
    drop_javascript_lines: bool = True
    policy_phrases: tuple[str, ...] = _POLICIES
    """A line with one of these, in either case, goes."""
    drop_lorem_ipsum: bool = True
    drop_curly_brackets: bool = True
    min_sentences: int | None = Field(default=5, ge=0)
    chinese: ChineseC4 = ChineseC4()


class C4:
    def __init__(self, spec: C4Spec) -> None:
        self._spec = spec
        self._policies = tuple(phrase.lower() for phrase in (*spec.policy_phrases, *spec.chinese.policy_phrases))

    def __call__(self, document: Document) -> Document | Drop:
        wordless, chinese = has_no_words(document), is_chinese(document)
        kept = self._kept(document.text, chinese, wordless)
        if isinstance(kept, Drop):
            return kept
        least = None if wordless else self._spec.min_sentences
        if least is not None and (found := _sentences(kept, least, chinese)) < least:
            return Drop("few_sentences", str(found))
        text = "\n".join(kept).strip()
        if not text:
            return Drop("no_lines")
        document.text = text
        return document

    def _kept(self, text: str, chinese: bool, wordless: bool) -> list[str] | Drop:
        """The lines that stay. What the whole text does not hold is not looked for in its lines."""
        spec, lowered = self._spec, text.lower()
        citations = spec.remove_citations and "[" in text
        brackets = spec.drop_curly_brackets and "{" in text
        lorem = spec.drop_lorem_ipsum and "lorem ipsum" in lowered
        javascript = spec.drop_javascript_lines and "javascript" in lowered
        policies = [phrase for phrase in self._policies if phrase in lowered]
        kept: list[str] = []
        for number, line in enumerate(text.splitlines(), 1):
            line = given = line.strip()
            if citations:
                line = _CITATION.sub("", line).strip()
            if (given and not line) or not (wordless or self._is_sentence(line, given, chinese)):
                continue
            if lorem and "lorem ipsum" in line.lower():
                return Drop("lorem_ipsum", f"line {number}")
            if javascript and "javascript" in line.lower():
                continue
            if brackets and "{" in line:
                return Drop("curly_bracket", f"line {number}")
            if policies and any(phrase in line.lower() for phrase in policies):
                continue
            kept.append(line)
        return kept

    def _is_sentence(self, line: str, given: str, chinese: bool) -> bool:
        """
        Args:
            given: the line with its marks of citations.
        """
        spec = self._spec
        if spec.require_terminal_punctuation and not _ends_well(line, chinese):
            return False
        if chinese:
            return not below(len(line), spec.chinese.min_line_characters)
        longest = spec.max_word_characters
        if longest is not None and len(given) > longest and any(len(word) > longest for word in given.split()):
            return False
        words = spec.min_line_words
        return not words or len(given.split(None, words)) >= words


def _ends_well(line: str, chinese: bool) -> bool:
    if line.endswith(_ELLIPSES):
        return False
    return line.rstrip(CLOSING).endswith(tuple(CHINESE_LINE_ENDS)) if chinese else line.endswith(_LINE_ENDS)


def _sentences(lines: list[str], enough: int, chinese: bool) -> int:
    """Sentences, counted until there are enough; the end of a line ends one."""
    following = _NEXT_CHINESE_SENTENCE if chinese else _NEXT_SENTENCE
    count = sum(map(bool, lines))
    for line in lines:
        if count >= enough:
            break
        count += sum(1 for _ in following.finditer(line))
    return count

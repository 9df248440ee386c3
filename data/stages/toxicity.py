"""Violence, sexual content, hate, self-harm and offers of crimes, scored by lexicon and, where one was trained, a model.

The lists in ``data/lexicons`` are Manta's own: one file a dimension and language, each line a weight and its terms. A term of
weight 4 decides in a short text, one of 1 only adds. Words that medicine, news and novels need are left out or weigh little: C4
(Raffel et al., arXiv 1910.10683) drops a page for one word of its list, and with it much that is no such thing.

The lists find what is blunt; a model, trained on texts that somebody labelled, is there for what they do not name. It judges a
long document by pieces, as Dolma's taggers do by sentences (Soldaini et al. 2024, arXiv 2402.00159).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from data.classifier.spec import ExamplesSpec, Trainable, TrainingSpec
from data.documents import Document
from data.spec_base import Share, Spec
from data.stages.base import Drop
from data.stages.libraries import library
from data.stages.text import by_characters, names_chinese

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from data.classifier.features import Features
    from data.classifier.model import Classifier

DIMENSIONS = ("violence", "sexual", "hate", "self_harm", "illegal")
LANGUAGES = ("en", "zh")
LEXICONS = Path(__file__).parents[1] / "lexicons"

LEXICON_SCORES = {dimension: f"toxicity_{dimension}" for dimension in DIMENSIONS}
MODEL_SCORES = {dimension: f"toxicity_model_{dimension}" for dimension in DIMENSIONS}
"""What a document's scores are called."""
# Of the bins in which the report counts scores: by lexicon, as the limits are; probabilities.
_LEXICON_EDGES = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0)
_MODEL_EDGES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9)

_PIECE_CHARACTERS = 2000
# The weight of terms that mean nothing else.
_DECIDES_ALONE = 4.0

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


class ModelLimits(Spec):
    """Probabilities from which on a document is dropped, one a dimension. None: the model drops nothing there."""

    violence: Share | None = 0.5
    sexual: Share | None = 0.5
    hate: Share | None = 0.5
    self_harm: Share | None = 0.5
    illegal: Share | None = 0.5


class ToxicityTraining(TrainingSpec):
    """JSON lines ``{"text": ..., "language": ..., "labels": ["hate"]}``: an empty list where nothing is wrong."""

    labelled: tuple[ExamplesSpec, ...] = Field(min_length=1)


class ToxicitySpec(Trainable):
    """Scores documents by the weighted hits of a lexicon and, where there is one, by a model, in five dimensions: violence,
    sexual, hate, self-harm, illegal; drops those with a score above its limit. The scores stay with the document."""

    stage: Literal["toxicity"] = "toxicity"
    limits: Limits = Limits()
    """In weighted hits per 1,000 words. Terms of all languages count in every document."""
    limits_zh: ChineseLimits = ChineseLimits()
    """For Chinese documents, in weighted hits per 1,000 characters without white space."""
    min_words: int = Field(default=100, ge=1)
    """A shorter document counts as one of this many words, and goes only for two hits in a dimension or for a term of weight 4:
    a single word that may mean something else does not decide over a sentence."""
    min_characters_zh: int = Field(default=200, ge=1)
    """The same for Chinese documents, in characters."""
    training: ToxicityTraining | None = None
    """What a model learns from, one a language and dimension. Without it there are lexicons only."""
    model_limits: ModelLimits = ModelLimits()
    """Of the likeliest of the document's pieces, which are lines together up to 2,000 characters."""

    @property
    def examples(self) -> ToxicityTraining | None:
        return self.training

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of what a document is given: a score a dimension by lexicon and, where there is a model, its probability."""
        return (*LEXICON_SCORES.values(), *(MODEL_SCORES.values() if self.training or self.trained else ()))


class Toxicity:
    scores = dict.fromkeys(LEXICON_SCORES.values(), _LEXICON_EDGES) | dict.fromkeys(MODEL_SCORES.values(), _MODEL_EDGES)

    def __init__(self, spec: ToxicitySpec) -> None:
        ahocorasick = library("ahocorasick_rs", spec.stage)
        self._spec = spec
        self._classifier = _classifier(spec)
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
        document.scores = {**(document.scores or {}), **dict.fromkeys(LEXICON_SCORES.values(), 0.0)}
        over, shown = self._by_lexicon(document, document.scores)
        likely, probabilities = self._by_model(document, document.scores)
        over |= {dimension: max(excess, over.get(dimension, 0.0)) for dimension, excess in likely.items()}
        if not over:
            return document
        worst = max(over, key=over.__getitem__)
        return Drop(f"toxic_{worst}", ", ".join((*shown, *probabilities)))

    def _by_lexicon(self, document: Document, given: dict[str, float]) -> tuple[dict[str, float], list[str]]:
        """By how much which limits are exceeded, and all scores as they are shown; they are ``given`` too."""
        text = _evened(document.text)
        weights = self._hits(text)
        if not weights:
            return {}, []
        if names_chinese(document.language):
            limits: Limits = self._spec.limits_zh
            size, least, unit = len(text) - text.count(" "), self._spec.min_characters_zh, "characters"
        else:
            limits, size, least, unit = self._spec.limits, text.count(" ") + 1, self._spec.min_words, "words"
        scores = {dimension: 1000 * sum(hits) / max(size, least) for dimension, hits in weights.items()}
        given |= {LEXICON_SCORES[dimension]: score for dimension, score in scores.items()}
        over = {
            dimension: score / limit
            for dimension, score in scores.items()
            if (limit := getattr(limits, dimension)) is not None and score >= limit
            if size >= least or len(weights[dimension]) > 1 or weights[dimension][0] >= _DECIDES_ALONE
        }
        shown = []
        for dimension, hits in weights.items():
            shown.append(f"{dimension} {scores[dimension]:.1f} ({len(hits)} hit{'s' * (len(hits) > 1)})")
        shown[-1] += f" in {size} {unit}" + (f", taken as {least}" if size < least else "")
        return over, shown

    def _by_model(self, document: Document, given: dict[str, float]) -> tuple[dict[str, float], list[str]]:
        """The same of the model, where the language has one."""
        model = self._classifier.model(document.language) if self._classifier is not None else None
        if model is None:
            return {}, []
        pieces = [_features(piece, document.language) for piece in _pieces(document.text)]
        likeliest = dict(zip(model.heads, model.probabilities(pieces).max(axis=0).tolist(), strict=True))
        given |= {MODEL_SCORES[dimension]: probability for dimension, probability in likeliest.items()}
        limits = self._spec.model_limits
        over = {
            dimension: probability / max(limit, 1e-9)
            for dimension, probability in likeliest.items()
            if (limit := getattr(limits, dimension)) is not None and probability >= limit
        }
        return over, [f"{dimension} {likeliest[dimension]:.2f} by model" for dimension in over]

    def _hits(self, text: str) -> dict[str, list[float]]:
        """Weights of the terms in ``text`` (lower case, single spaces), by dimension. Of terms that overlap the first counts,
        of those that begin together the longest."""
        found = self._automaton.find_matches_as_indexes(text, overlapping=True)
        whole = [hit for hit in found if not self._whole_words[hit[0]] or _stands_alone(text, hit[1], hit[2])]
        hits: dict[str, list[float]] = {}
        at = 0
        for number, start, end in sorted(whole, key=lambda hit: (hit[1], -hit[2])):
            if start >= at:
                at = end
                for dimension, weight in zip(DIMENSIONS, self._weights[number], strict=True):
                    if weight:
                        hits.setdefault(dimension, []).append(weight)
        return hits


def _classifier(spec: ToxicitySpec) -> "Classifier | None":
    if spec.training is not None:
        # The preparation trains before it makes the stages that clean; what that needs is said before.
        library("sklearn.linear_model", spec.stage)
    if spec.trained is None:
        return None
    from data.classifier.model import Classifier

    return Classifier.load(Path(spec.trained.path), spec.trained.checksum)


def _pieces(text: str) -> Iterator[str]:
    """Lines together up to 2,000 characters, longer lines cut: a piece is as long as what a model is trained on, and a page
    of it in a book shows. Of a text without lines there is one piece."""
    start, end = 0, 0
    while start < len(text) or not end:
        end = min(start + _PIECE_CHARACTERS, len(text))
        if end < len(text) and (border := text.rfind("\n", start + 1, end)) > 0:
            end = border + 1
        yield text[start:end]
        start = end = max(end, 1)


def _features(text: str, language: str) -> "Features":
    from data.classifier.features import features_of
    from data.dedup.shingles import unit_hashes

    return features_of(unit_hashes(text, language), by_characters(language))


class ToxicityLabels:
    """Each dimension is a question of its own."""

    together = False
    corpora: Sequence[tuple[str, Any]] = ()

    def read_label(self, line: dict[str, Any]) -> tuple[str, ...]:
        labels = line.get("labels")
        if not isinstance(labels, list) or not all(label in DIMENSIONS for label in labels):
            raise ValueError(f"field 'labels' is {labels!r}, not a list of any of {', '.join(DIMENSIONS)}")
        return tuple(labels)

    def features(self, text: str, language: str) -> "Features":
        return _features(text, language)

    def questions(self, labels: Sequence[tuple[str, ...]]) -> dict[str, "npt.NDArray[np.bool_]"]:
        import numpy as np

        return {dimension: np.array([dimension in each for each in labels], np.bool_) for dimension in DIMENSIONS}


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

"""Five levels of quality, from 0 (poor) to 4 (good), by rules and, where it was trained, a classifier.

By rules alone each figure of ``grade_figures`` that falls short wholly costs two levels. With a classifier the same figures are
among what it looks at, beside hashed n-grams, and the level is the one that it expects, rounded: as FineWeb-Edu does (Penedo et
al. 2024, arXiv 2406.17557), whose scale has one level more. A classifier learns from texts with grades, or from two corpora,
one good and one poor, as for GPT-3 (Brown et al. 2020, arXiv 2005.14165) and DCLM (Li et al. 2024, arXiv 2406.11794).
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data.classifier.spec import ExamplesSpec, Trainable, TrainingSpec
from data.documents import Document
from data.spec_base import Misfit
from data.stages.base import GRADES, Drop
from data.stages.libraries import library
from data.stages.text import figure, is_chinese

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from data.classifier.features import Features, Floats
    from data.classifier.model import LanguageModel

_BEST = GRADES - 1
_LEVELS_A_SHORTFALL = 2.0

Level = Annotated[int, Field(ge=0, le=_BEST)]


class GradeTraining(TrainingSpec):
    """Texts with grades (JSON lines ``{"text": ..., "language": ..., "grade": 0 to 4}``), corpora of which everything is good
    (a 4) or poor (a 0), or both."""

    good: tuple[ExamplesSpec, ...] = ()
    poor: tuple[ExamplesSpec, ...] = ()

    @model_validator(mode="after")
    def _has_both_sides(self) -> Self:
        if not self.labelled and not (self.good and self.poor):
            raise Misfit("a classifier needs labelled texts, or both good and poor ones", "labelled", "good", "poor")
        return self


class GradeSpec(Trainable):
    """Gives each document one of five levels of quality, 0 to 4, by its first 20,000 characters."""

    stage: Literal["grade"] = "grade"
    skip_domains: tuple[str, ...] = ("code",)
    """The figures are of text that people read."""
    keep: Annotated[tuple[Level, ...], Field(min_length=1)] | None = None
    """Levels that stay; None keeps all. The level stays with the document."""
    training: GradeTraining | None = None
    """What a classifier learns from, a model a language. Without it, or where a language has none, rules alone decide."""

    @property
    def examples(self) -> GradeTraining | None:
        return self.training


class Grade:
    grades = True

    def __init__(self, spec: GradeSpec) -> None:
        from data.classifier.model import Classifier

        self._kept = range(GRADES) if spec.keep is None else frozenset(spec.keep)
        self._classifier: Classifier | None = None
        if spec.training is not None:
            # The preparation trains before it makes the stages that clean; what that needs is said before.
            library("sklearn.linear_model", spec.stage)
        if spec.trained is not None:
            self._classifier = Classifier.load(Path(spec.trained.path), spec.trained.checksum)

    def __call__(self, document: Document) -> Document | Drop:
        quality = self._quality(document)
        document.grade = min(max(round(quality), 0), _BEST)
        return document if document.grade in self._kept else Drop(f"grade_{document.grade}", figure(quality))

    def _quality(self, document: Document) -> float:
        model = self._classifier.model(document.language) if self._classifier is not None else None
        features = _features(document)
        if model is None:
            return max(0.0, _BEST - _LEVELS_A_SHORTFALL * float(features.figure_F.sum()))
        return _expected(model, model.probabilities([features])[0])


def _features(document: Document) -> "Features":
    from data.classifier.features import MOST_CHARACTERS, features_of
    from data.dedup.shingles import unit_hashes
    from data.stages.grade_figures import shortfalls

    beginning = Document(document.text[:MOST_CHARACTERS], document.id, document.language, document.domain)
    chinese = is_chinese(beginning)
    unit_N = unit_hashes(beginning.text, "zh" if chinese else document.language)
    return features_of(unit_N, chinese, shortfalls(beginning, unit_N, chinese))


def _expected(model: "LanguageModel", probability_H: "Floats") -> float:
    """Heads are steps from one level to the next that had examples: ``0-2`` says how likely it is at least a 2."""
    steps = [tuple(map(int, head.split("-"))) for head in model.heads]
    return steps[0][0] + sum((high - low) * float(p) for (low, high), p in zip(steps, probability_H, strict=True))


class GradeLabels:
    """The steps between grades, each a question (Frank and Hall 2001): is it at least the upper one?"""

    together = True
    corpora: Sequence[tuple[str, Any]] = (("good", _BEST), ("poor", 0))

    def read_label(self, line: dict[str, Any]) -> int:
        grade = line.get("grade")
        if isinstance(grade, bool) or not isinstance(grade, int) or not 0 <= grade <= _BEST:
            raise ValueError(f"field 'grade' is {grade!r}, not a whole number from 0 to {_BEST}")
        return grade

    def features(self, text: str, language: str) -> "Features":
        return _features(Document(text, "", language, ""))

    def questions(self, labels: Sequence[int]) -> dict[str, "npt.NDArray[np.bool_]"]:
        import numpy as np

        grade_D = np.array(labels)
        levels = sorted(set(labels))
        return {f"{low}-{high}": grade_D >= high for low, high in pairwise(levels)}

"""Fits, calibrates and measures a classifier. One thread, no draw: the same examples give the same bytes.

Examples fall into five parts by hash. Each part is scored by a fit to the other four, and calibrated on their scores, so all
are held out once: that is what the figures are measured on. The model itself is fitted to all of them.
"""

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from data.classifier.features import BUCKETS, Features, Floats
from data.classifier.figures import HeadFigures, LanguageFigures, TrainingFigures
from data.classifier.model import SCALE, Classifier, LanguageModel
from data.classifier.spec import TrainingSpec
from data.files import U64, key64, mix64
from data.stages.libraries import library

BINS = 10
_FOLDS = 5
# Of liblinear: the inverse of the strength of L2, for rows of about unit length.
_C = 10.0
_NEEDED_BY = "that has a classifier to train"

Answers = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Examples:
    """Of one language, ``D`` of them. ``H`` counts questions."""

    hash_D: npt.NDArray[np.uint64]
    """Of their text: equal ones are on one side."""
    features: Iterable[Features]
    """Asked for once and one by one: those of long texts are larger than what is kept of them."""
    heads: tuple[str, ...]
    answer_DH: Answers


def fit(examples: Iterable[tuple[str, Examples]], spec: TrainingSpec, *, together: bool) -> Classifier:
    """A model a language, one after another.

    Args:
        together: where one head has too few examples or is not calibrated, the others are not used either.

    Raises:
        LibraryMissing: scikit-learn is not installed.
    """
    models: dict[str, LanguageModel] = {}
    figures: list[LanguageFigures] = []
    # What BLAS adds up in several threads depends on their number.
    with library("threadpoolctl", _NEEDED_BY).threadpool_limits(1):
        for language, of_language in examples:
            outcome, model = _fit_language(language, of_language, spec, together)
            figures.append(outcome)
            if model is not None:
                models[language] = model
    return Classifier(models, TrainingFigures(languages=tuple(figures)))


def _fit_language(
    language: str, examples: Examples, spec: TrainingSpec, together: bool
) -> tuple[LanguageFigures, LanguageModel | None]:
    count = len(examples.hash_D)
    fold_D = mix64(examples.hash_D ^ key64("fold")) % np.uint64(_FOLDS)
    answers = {
        head: answer_D
        for head, answer_D in zip(examples.heads, examples.answer_DH.T, strict=True)
        # Folds are drawn by hash: whatever is left without one of them needs both answers.
        if _sides(answer_D) >= spec.min_examples and all(_sides(answer_D[fold_D != fold]) for fold in range(_FOLDS))
    }
    if not answers:
        why = f"each question has fewer than {spec.min_examples} examples on one of its sides"
        return LanguageFigures(language=language, examples=count, off=why), None
    rows, used_C = _matrix(examples.features)
    heads, columns = [], {}
    for head, answer_D in answers.items():
        weights, probability_D = _crossfitted(rows, answer_D, fold_D)
        column = np.zeros(len(used_C))
        column[used_C] = weights
        figures = _measured(head, probability_D, answer_D, spec.max_calibration_error)
        heads.append(figures)
        if not figures.off:
            columns[head] = column
    off = ""
    unanswered = [head for head in examples.heads if head not in answers]
    if together and unanswered:
        # Of a scale its ends: without them no text could be so good, or so poor.
        off, columns = f"{', '.join(unanswered)}: fewer than {spec.min_examples} examples on one side", {}
    elif not columns or (together and len(columns) < len(heads)):
        off, columns = f"the calibration error is above {spec.max_calibration_error:g}", {}
    outcome = LanguageFigures(language=language, examples=count, heads=tuple(heads), off=off)
    return outcome, _model(columns) if columns else None


def _sides(answer_D: Answers) -> int:
    """Examples on the side that has fewer."""
    return min(int(answer_D.sum()), int((~answer_D).sum()))


def _matrix(features: Iterable[Features]) -> tuple[Any, npt.NDArray[np.bool_]]:
    """Rows as ``LanguageModel`` weighs them: n-grams over the root of their number, figures, one for the bias.

    Of all columns only those that hold something, and which these are. 8 bytes for each different n-gram of each text.
    """
    index, value, ends = array("i"), array("f"), [0]
    seen_B = np.zeros(BUCKETS, np.bool_)
    for each in features:
        bucket_B, times_B = np.unique(each.bucket_N, return_counts=True)
        seen_B[bucket_B] = True
        dense = np.arange(BUCKETS, BUCKETS + len(each.figure_F) + 1)
        index.frombytes(np.concatenate((bucket_B, dense)).astype(np.int32).tobytes())
        row = np.concatenate((times_B / np.sqrt(len(each.bucket_N)), each.figure_F, (1.0,)))
        value.frombytes(row.astype(np.float32).tobytes())
        ends.append(len(index))
    used_C = np.concatenate((seen_B, np.ones(len(dense), np.bool_)))
    place_C = np.cumsum(used_C, dtype=np.int32) - np.int32(1)
    columns = np.frombuffer(index, np.int32)
    for start, end in pairwise(ends):
        columns[start:end] = place_C[columns[start:end]]
    parts = np.frombuffer(value, np.float32), columns, np.array(ends, np.int32)
    shape = len(ends) - 1, int(place_C[-1]) + 1
    return library("scipy.sparse", _NEEDED_BY).csr_matrix(parts, shape=shape), used_C


def _crossfitted(rows: Any, answer_D: Answers, fold_D: U64) -> tuple[Floats, Floats]:
    """Weights of the columns, and the probability of each example by weights and a calibration that have not seen it."""
    score_D, probability_D = np.empty(len(answer_D)), np.empty(len(answer_D))
    for fold in np.unique(fold_D):
        out_D = fold_D == fold
        score_D[out_D] = rows[out_D] @ _weights(rows[~out_D], answer_D[~out_D])
    for fold in np.unique(fold_D):
        out_D = fold_D == fold
        slope, shift = _line(score_D[~out_D], answer_D[~out_D])
        probability_D[out_D] = 1 / (1 + np.exp(-(slope * score_D[out_D] + shift)))
    slope, shift = _line(score_D, answer_D)
    weights = slope * _weights(rows, answer_D)
    weights[-1] += shift
    return weights, probability_D


def _weights(rows: Any, answer_D: Answers) -> Floats:
    """Logistic regression; the last column is ones, and its weight the bias."""
    logistic = library("sklearn.linear_model", _NEEDED_BY).LogisticRegression
    weights: Floats = logistic(solver="liblinear", C=_C, fit_intercept=False, max_iter=1000).fit(rows, answer_D).coef_[0]
    return weights


def _line(score_D: Floats, answer_D: Answers) -> tuple[float, float]:
    """Platt's calibration (1999): a line through the scores, on the scale of log odds.

    His targets are not quite 0 and 1, so that a few scores without an error promise no certainty.
    """
    yes, no = int(answer_D.sum()), int((~answer_D).sum())
    target_D = np.where(answer_D, (yes + 1) / (yes + 2), 1 / (no + 2))
    # A target t is t of a yes and 1 - t of a no. The weak penalty only keeps the slope finite.
    logistic = library("sklearn.linear_model", _NEEDED_BY).LogisticRegression
    line = logistic(solver="liblinear", C=1e4, intercept_scaling=100, max_iter=1000, tol=1e-8)
    line.fit(
        np.concatenate((score_D, score_D))[:, None],
        np.repeat((True, False), len(score_D)),
        sample_weight=np.concatenate((target_D, 1 - target_D)),
    )
    return float(line.coef_[0, 0]), float(line.intercept_[0])


def _measured(head: str, probability_D: Floats, answer_D: Answers, most: float) -> HeadFigures:
    error = calibration_error(probability_D, answer_D)
    return HeadFigures(
        name=head,
        positive=int(answer_D.sum()),
        calibration_error=round(error, 4),
        ranking=round(_ranking(probability_D, answer_D), 4),
        off=f"its calibration error is above {most:g}" if error > most else "",
    )


def calibration_error(probability_D: Floats, answer_D: Answers) -> float:
    """Mean distance of the probability that was said from the share that came true, over 10 bins of equal width."""
    bin_D = np.minimum((probability_D * BINS).astype(np.int64), BINS - 1)
    said = np.bincount(bin_D, probability_D, BINS)
    true = np.bincount(bin_D, answer_D, BINS)
    return float(np.abs(said - true).sum() / len(probability_D))


def _ranking(probability_D: Floats, answer_D: Answers) -> float:
    """The share of pairs of a yes and a no that the yes leads; half of it where they are equal (Mann and Whitney)."""
    _, place_D, count = np.unique(probability_D, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2
    yes = int(answer_D.sum())
    return float((rank[place_D][answer_D].sum() - yes * (yes + 1) / 2) / (yes * (len(answer_D) - yes)))


def _model(columns: Mapping[str, Floats]) -> LanguageModel:
    matrix = np.stack(list(columns.values()), axis=1)
    weight_BH = np.rint(matrix[:BUCKETS] * SCALE).astype(np.int32)
    return LanguageModel(tuple(columns), weight_BH, matrix[BUCKETS:-1].copy(), matrix[-1].copy())

"""A trained classifier: linear in hashed n-grams and figures, calibrated, a model a language, in one file.

A language has several heads, each the answer to one question about the text (``grade >= 2``, ``hate``). ``H`` counts heads,
``D`` documents. Weights are whole numbers of ``1 / SCALE``: their sums are exact, so a score is the same to the bit in whatever
batch it is computed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data.classifier.features import Features, Floats
from data.classifier.figures import TrainingFigures
from data.errors import SourceError
from data.files import checksum
from data.stages.text import primary

FORMAT = 4
"""Of the file, and of what features mean: part of what a trained classifier is found by."""
SCALE = 1 << 16


@dataclass(frozen=True, slots=True)
class LanguageModel:
    heads: tuple[str, ...]
    weight_BH: npt.NDArray[np.int32]
    figure_FH: Floats
    bias_H: Floats

    def probabilities(self, features: Sequence[Features]) -> Floats:
        """``[D, H]``, each that the answer is yes."""
        starts = np.cumsum([0, *(len(each.bucket_N) for each in features[:-1])])
        weights = self.weight_BH[np.concatenate([each.bucket_N for each in features])]
        sum_DH = np.add.reduceat(weights, starts, axis=0, dtype=np.int64)
        length_D = np.array([len(each.bucket_N) for each in features])
        score_DH = sum_DH / (SCALE * np.sqrt(length_D))[:, None] + self.bias_H
        for number, figure_H in enumerate(self.figure_FH):
            score_DH += np.array([each.figure_F[number] for each in features])[:, None] * figure_H
        probability_DH: Floats = 1 / (1 + np.exp(-np.clip(score_DH, -500, 500)))
        return probability_DH


@dataclass(frozen=True, slots=True)
class Classifier:
    models: Mapping[str, LanguageModel]
    """By language; one that is not there has none."""
    figures: TrainingFigures

    def model(self, language: str) -> LanguageModel | None:
        return self.models.get(primary(language))

    def dump(self) -> bytes:
        tensors: dict[str, npt.NDArray[Any]] = {}
        for language, model in self.models.items():
            tensors[f"{language}.weight"] = model.weight_BH
            tensors[f"{language}.figure"] = model.figure_FH
            tensors[f"{language}.bias"] = model.bias_H
        heads = {language: model.heads for language, model in sorted(self.models.items())}
        # One entry, as the library writes several in no fixed order.
        about = {"format": FORMAT, "heads": heads, "figures": self.figures.model_dump()}
        return save(tensors, {"manta": json.dumps(about)})

    @classmethod
    def load(cls, path: Path, stated: str) -> "Classifier":
        """
        Args:
            stated: the checksum that it must have; empty for any.

        Raises:
            SourceError: the file does not exist, is no classifier of this version, or has another checksum.
        """
        try:
            if stated and checksum(path) != stated:
                raise SourceError(f"{path} does not match its checksum {stated}: it is torn, or another one")
            with safe_open(path, "numpy") as file:
                about = json.loads((file.metadata() or {})["manta"])
                if about["format"] != FORMAT:
                    raise SourceError(f"{path} is a classifier of format {about['format']}, not {FORMAT}; train it again")
                models = {
                    language: LanguageModel(
                        tuple(heads), *(file.get_tensor(f"{language}.{name}") for name in ("weight", "figure", "bias"))
                    )
                    for language, heads in about["heads"].items()
                }
                return cls(models, TrainingFigures.model_validate(about["figures"]))
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
        except (SafetensorError, ValidationError, KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{path} is no classifier that was trained here") from error

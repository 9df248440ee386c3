"""What a classifier learns from, or where a trained one lies. Pydantic and nothing heavy is imported here."""

from typing import Self

from pydantic import Field, model_validator

from data.spec_base import Misfit, Share, Spec
from data.stages.base import StageSettings


class ExamplesSpec(Spec):
    """Texts whose labels are known."""

    path: str
    """A path or glob. Examples with labels are JSON lines, also compressed; corpora may have any format that a source may."""
    language: str = "en"
    """Of examples that have no field ``language`` of their own."""
    text_field: str = "text"


class TrainingSpec(Spec):
    """What all classifiers have in common. Each language has a model of its own."""

    labelled: tuple[ExamplesSpec, ...] = ()
    """JSON lines with a text, its ``language`` if need be, and its label."""
    min_examples: int = Field(default=50, ge=10)
    """On either side of each decision; where a language has fewer, it goes without."""
    max_examples: int = Field(default=50_000, ge=100)
    """A language. Of more, those are taken whose hashes are lowest."""
    max_characters: int = Field(default=50_000_000, ge=1_000_000, le=500_000_000)
    """Of all examples of a language together, each up to its first 20,000; of more, those are taken whose hashes are lowest.
    This decides over memory. Measured at the peak, in bytes for each of these characters: 7 to 10 in English, 44 (texts of
    20,000) to 67 (of 200) in Chinese, so at the default 0.5 GB and 2.2 to 3.4 GB."""
    max_calibration_error: Share = 0.05
    """Where the expected calibration error on examples held out is larger, the language goes without."""


class TrainedSpec(Spec):
    """A classifier that was trained before, by the same stage."""

    path: str
    checksum: str = ""
    """xxh3-128 of the file; a preparation fills it in. Where it is given, the file must be that one."""


class Trainable(StageSettings):
    """Base of the stages that may have a classifier."""

    trained: TrainedSpec | None = None
    """A classifier from an earlier preparation (the report names its file)."""

    @property
    def examples(self) -> TrainingSpec | None:
        """What it learns from; None where it has no classifier to train."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.trained is not None and self.examples is not None:
            raise Misfit("training and trained exclude each other: train a classifier, or name one", "training", "trained")
        return self

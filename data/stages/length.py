"""Documents of too few or too many characters."""

from typing import Literal, Self

from pydantic import Field, model_validator

from data.documents import Document
from data.spec_base import Misfit
from data.stages.base import Drop, StageSettings


class LengthSpec(StageSettings):
    """Drops what has too few or too many characters."""

    stage: Literal["length"] = "length"
    min_characters: int = Field(default=32, ge=0)
    max_characters: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise Misfit(
                f"max_characters {self.max_characters} is less than min_characters {self.min_characters}",
                *("max_characters", "min_characters"),
            )
        return self


class Length:
    def __init__(self, spec: LengthSpec) -> None:
        self._spec = spec

    def __call__(self, document: Document) -> Document | Drop:
        length, most = len(document.text), self._spec.max_characters
        if not length:
            return Drop("empty")
        if length < self._spec.min_characters:
            return Drop("too_short", str(length))
        return Drop("too_long", str(length)) if most is not None and length > most else document

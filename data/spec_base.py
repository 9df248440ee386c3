"""What every part of a job spec is made of. Pydantic and nothing heavy."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """Base of every part of a job spec: unknown keys are errors, numbers are finite, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Misfit(ValueError):
    """Values that are each in order and do not go together. Any of ``fields`` may be to blame: names below the model that
    raises it, dotted or as a tuple, the likeliest first."""

    def __init__(self, detail: str, *fields: str | tuple[str | int, ...]) -> None:
        super().__init__(detail)
        self.fields = fields


Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What torch's and NumPy's generators both take."""
Weight = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]

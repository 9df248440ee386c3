"""The job spec: a union discriminated on ``kind``. Each kind is the executing package's own spec, with a name."""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag, TypeAdapter

from data.spec import DataSpec, TokenizerSpec
from data.spec_base import Spec
from tuning.spec import StudySpec
from workers.attempt import Phase
from workers.spec import TrainSpec

Name = Annotated[str, Field(min_length=1, max_length=47, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
"""Lower-case letters, digits and dashes: a job's name becomes a Kubernetes name (RayJob: 47 characters)."""


class TrainJob(TrainSpec):
    """Prepare the data, then train."""

    kind: Literal["train"] = "train"
    name: Name


class DataJob(Spec):
    """Prepare the data and stop."""

    kind: Literal["data"] = "data"
    name: Name
    data_pipeline: DataSpec = DataSpec()
    tokenizer: TokenizerSpec = TokenizerSpec()


class TuneJob(StudySpec):
    """Search over fields of a training job."""

    kind: Literal["tune"] = "tune"
    name: Name


AnyJob = TrainJob | DataJob | TuneJob


class Kind(NamedTuple):
    spec: type[AnyJob]
    phases: tuple[Phase, ...]
    """What it goes through, in order."""
    driver: str
    """The module that carries out an attempt, given the file of its order."""


def _kind(value: Any) -> str:
    return str(value.get("kind", "train") if isinstance(value, dict) else getattr(value, "kind", "train"))


JobSpec = Annotated[
    Annotated[TrainJob, Tag("train")] | Annotated[DataJob, Tag("data")] | Annotated[TuneJob, Tag("tune")],
    Discriminator(_kind),
]
JOB_SPEC: TypeAdapter[AnyJob] = TypeAdapter(JobSpec)

_DATA = (Phase.DOCUMENTS, Phase.TOKENIZER, Phase.SHARDS)
KINDS = {
    "train": Kind(TrainJob, (*_DATA, Phase.TRAINING), "workers.driver"),
    "data": Kind(DataJob, _DATA, "workers.driver"),
    "tune": Kind(TuneJob, (*_DATA, Phase.TRIALS), "tuning.driver"),
}

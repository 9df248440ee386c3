"""What can be wrong with a model that is to leave for, or come from, Hugging Face's format."""

from typing import ClassVar

from data.errors import MantaError


class NotExportable(MantaError):
    """No class of ``transformers`` computes what this model does; the message names the field."""

    code: ClassVar[str] = "not_exportable"
    status: ClassVar[int] = 422


class OutputExists(MantaError):
    """The directory to export to holds something already."""

    code: ClassVar[str] = "output_exists"
    status: ClassVar[int] = 409


class TokenizerMismatch(MantaError):
    """The tokenizer is not that of the checkpoint: it has another vocabulary."""

    code: ClassVar[str] = "tokenizer_mismatch"
    status: ClassVar[int] = 422


class JobUnreadable(MantaError):
    """The job file is missing, no YAML or JSON, or its model is none."""

    code: ClassVar[str] = "spec_invalid"
    status: ClassVar[int] = 422


class CheckpointUnreadable(MantaError):
    """The checkpoint to export is not there, torn, or of another model than the spec says."""

    code: ClassVar[str] = "checkpoint_unreadable"
    status: ClassVar[int] = 409


class PretrainedUnreadable(MantaError):
    """A directory with a pretrained model is not there, incomplete, torn, or holds what are no weights."""

    code: ClassVar[str] = "pretrained_unreadable"
    status: ClassVar[int] = 422

    def __init__(self, detail: str, *, pointer: str | None = "/init_from") -> None:
        super().__init__(detail, pointer=pointer)


class PretrainedMismatch(MantaError):
    """A pretrained model is another one than the job's, or one that the decoder cannot compute."""

    code: ClassVar[str] = "pretrained_mismatch"
    status: ClassVar[int] = 422

    def __init__(self, detail: str, *, pointer: str | None = "/init_from") -> None:
        super().__init__(detail, pointer=pointer)

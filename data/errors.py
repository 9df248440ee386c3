"""The base of every error that a user can cause, and the data room's own.

An error class owns its stable ``code`` and the HTTP status that the edge answers with (RFC 9457); nothing else decides it.
"""

from typing import ClassVar


class MantaError(Exception):
    """Something that the user can mend.

    ``pointer`` is a JSON pointer into the job spec (``/data_pipeline/sources/0/path``) where one field is to blame.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 400

    def __init__(self, detail: str, *, pointer: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.pointer = pointer


class SourceError(MantaError):
    """A data source does not exist, is empty, cannot be read, or holds what cannot be text."""

    code = "source_unreadable"
    status = 422


class DocumentError(SourceError):
    """One document in a source is broken; the message names file and line."""

    code = "document_unreadable"


class NotEnoughData(MantaError):
    """What is left after cleaning does not fill one global batch (or one held-out row)."""

    code = "not_enough_data"
    status = 422


class ShardError(MantaError):
    """A prepared shard is missing, torn, or does not match its checksum."""

    code = "shard_corrupt"
    status = 409

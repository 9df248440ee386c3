"""What a prepared data set was made of: the model of its ``inputs.json``, whose checksum is in the manifest."""

from pathlib import Path

from pydantic import ValidationError

from data.errors import ShardError
from data.files import checksum
from data.manifest import INPUTS_NAME, Manifest, Record


class Input(Record):
    """One file, as it was when it was read."""

    path: str
    source: str
    """The path of the source that named it."""
    licence: str | None
    size: int
    """Bytes, as it lies."""
    digest: str
    """xxh3-128 of its content; on object storage, what the store says of its version."""
    documents: int
    """Read from it, broken ones among them."""


class Inputs(Record):
    files: tuple[Input, ...]
    """In reading order."""

    @classmethod
    def read(cls, directory: Path) -> "Inputs":
        """
        Raises:
            ShardError: there is no data set, or no such file, or it does not match the manifest's checksum.
        """
        path, stated = directory / INPUTS_NAME, Manifest.read(directory).inputs_checksum
        try:
            if checksum(path) != stated:
                raise ShardError(f"{path} does not match the checksum in the manifest: it is torn, or was edited")
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise ShardError(f"{directory} has no {INPUTS_NAME}") from error
        except ValidationError as error:
            raise ShardError(f"{path} is not a list of inputs of this version: {error.errors()[0]['msg']}") from error

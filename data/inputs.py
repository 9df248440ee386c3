"""What a prepared data set was made of: the model of its ``inputs.json``, whose checksum is in the manifest."""

from pathlib import Path

from data.manifest import INPUTS_NAME, Manifest, Record, read_companion


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
        return read_companion(cls, directory / INPUTS_NAME, Manifest.read(directory).inputs_checksum)

"""Cleaned parts outlive the preparation that made them: the next one that reads the same files in the same way takes them.

They lie in ``.cleaned`` beside the prepared data sets, each under the hash of what decides its bytes; ``data/leftovers.py`` has
the rule by which they go. Whoever wants the space may delete the folder when nothing is being prepared.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import metadata

import xxhash
from pydantic import TypeAdapter

from data import stdlib
from data.dedup.spec import NearSpec
from data.files import checksum
from data.manifest import FORMAT
from data.sources import InputFile
from data.sources.listing import versions
from data.spec import DataSpec, SourceSpec
from data.stages.registry import DISTRIBUTIONS, FOLDERS, StageSpec

FOLDER = ".cleaned"
_SETTINGS: TypeAdapter[tuple[StageSpec, ...]] = TypeAdapter(tuple[StageSpec, ...])
# Settings of near duplicates that no signature depends on.
_AFTER_SIGNATURES = {"keep", "memory_bytes", "min_agreement", "hamming", "blocks"}


def clean_versions(data: DataSpec) -> dict[str, str]:
    """Of the libraries and files that decide what the stages leave, and how what they drop is written."""
    kinds = {type(spec) for spec in data.stages}
    names = {name for kind in kinds for name in DISTRIBUTIONS.get(kind, ())}
    if data.keep_dropped:
        names.add("pyarrow")
    found = {name: metadata.version(name) for name in sorted(names)}
    for folder in sorted(FOLDERS[kind] for kind in kinds & FOLDERS.keys()):
        found |= {f"{folder.name}/{file.name}": checksum(file) for file in sorted(folder.iterdir())}
    return found


def part_name(
    data: DataSpec, source: SourceSpec, files: Sequence[InputFile], near: NearSpec | None, cleaning: Mapping[str, str]
) -> str:
    """
    Args:
        cleaning: ``clean_versions`` of the data.

    Returns:
        ``documents-<hash of everything that decides what is in it>.arrow``.
    """
    # Prose and code of Python's library are cut from the same files.
    kind = source.path if source.path.startswith(stdlib.PREFIX) else None
    settings = [
        FORMAT,
        [versions(files), cleaning],
        kind,
        source.model_dump(mode="json", exclude={"path", "weight", "licence"}),
        _SETTINGS.dump_python(data.stages, mode="json"),
        near.model_dump(mode="json", exclude=_AFTER_SIGNATURES) if near is not None else None,
        data.max_document_bytes,
        data.on_bad_document,
        data.keep_dropped,
        [[file.path, file.size, file.digest, file.extent] for file in files],
    ]
    return f"documents-{xxhash.xxh3_128_hexdigest(json.dumps(settings).encode())}.arrow"

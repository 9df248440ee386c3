"""Cleaned parts outlive the preparation that made them: the next one that reads the same files in the same way takes them.

They lie in ``.cleaned`` beside the prepared data sets, each under the hash of what decides its bytes. A preparation claims its
parts before it makes any; when one is over, what no data set or unfinished preparation claims is removed. Whoever wants the
space may delete the folder when nothing is being prepared.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import xxhash
from pydantic import TypeAdapter

from data import stdlib
from data.dedup.spec import NearSpec
from data.files import TEMPORARY_PREFIX, checksum, write_atomically
from data.locks import locked
from data.manifest import FORMAT
from data.sources import InputFile
from data.sources.listing import versions
from data.spec import DataSpec, SourceSpec
from data.stages.registry import DISTRIBUTIONS, FOLDERS, StageSpec

FOLDER = ".cleaned"
_CLAIMS = "claims"
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


def claim(root: Path, identity: str, parts: Iterable[Path], pulse: Callable[[], None]) -> None:
    """Keeps parts, made or not, as long as the data set of that identity or its unfinished preparation is there."""
    path, claimed = root / FOLDER / _CLAIMS / identity, json.dumps(sorted({part.stem for part in parts})).encode()
    with locked(root / f"{FOLDER}.lock", pulse):
        if not path.is_file() or path.read_bytes() != claimed:
            write_atomically(path, claimed)


def tidy(root: Path, pulse: Callable[[], None], failed: bool = False) -> None:
    """Removes the parts that nobody claims, and what killed tasks left of parts that nobody makes now.

    Args:
        failed: a preparation failed: parts that nobody claims any more stay until one succeeds, which may take them.
    """
    folder = root / FOLDER
    with locked(root / f"{FOLDER}.lock", pulse):
        claimed: set[str] = set()
        under_way: set[str] = set()
        for path in (folder / _CLAIMS).glob("*"):
            unfinished = (root / f"{path.name}.partial").is_dir()
            if unfinished or (root / path.name).is_dir():
                parts = json.loads(path.read_bytes())
                claimed.update(parts)
                under_way.update(parts if unfinished else ())
            elif not failed or path.name.startswith(TEMPORARY_PREFIX):
                path.unlink(missing_ok=True)
        for path in sorted(folder.glob(f"{TEMPORARY_PREFIX}*")):
            if _part_of(path) not in under_way:
                path.unlink(missing_ok=True)
        unclaimed = [] if failed else [path for path in folder.glob("documents-*") if _part_of(path) not in claimed]
        # Markers first: a part without one is made again.
        for path in sorted(unclaimed, key=lambda path: path.suffix != ".json"):
            path.unlink(missing_ok=True)


def _part_of(path: Path) -> str:
    """The stem of the part that a file belongs to, or is to become."""
    return path.name.removeprefix(TEMPORARY_PREFIX).partition(".")[0]

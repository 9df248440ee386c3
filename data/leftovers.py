"""What lies beside the prepared data sets, and when it goes.

A preparation claims the cleaned parts and classifiers that it needs before it makes any. When one has ended well, it removes

- cleaned parts that no data set and no unfinished preparation claims, and what killed tasks left of those nobody makes now;
- preparations that were abandoned: nobody works on them, nothing was written for 30 days. Who resumes one later begins anew.
  At once what late tasks of a dead driver wrote beside the data set that another attempt has finished;
- classifiers that nobody claims, 30 days after they were trained, and digests that nobody asked for in 30 days;
- locks that nobody holds, and the waste of preparations that failed and were killed as they cleaned up.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data.classifier.training import FOLDER as CLASSIFIERS
from data.cleaned import FOLDER as CLEANED
from data.digests import FOLDER as DIGESTS
from data.files import TEMPORARY_PREFIX, write_atomically
from data.locks import if_free, locked

_CLAIMS = "claims"
_ABANDONED_SECONDS = 30 * 24 * 60 * 60


def lock_of(root: Path, identity: str) -> Path:
    """Who prepares the data set of that identity holds it."""
    return root / f".{identity}.lock"


def claim(root: Path, identity: str, files: Iterable[Path], pulse: Callable[[], None]) -> None:
    """Keeps files, made or not, beside those claimed before, as long as the data set of that identity or its unfinished
    preparation is there."""
    path = root / CLEANED / _CLAIMS / identity
    with locked(root / f"{CLEANED}.lock", pulse):
        before = _claimed(path)
        claimed = sorted({file.stem for file in files}.union(before))
        if claimed != before or not path.is_file():
            write_atomically(path, json.dumps(claimed).encode())
        else:
            os.utime(path)


def _claimed(path: Path) -> list[str]:
    names: list[str] = json.loads(path.read_bytes()) if path.is_file() else []
    return names


def discard(work: Path) -> None:
    """Takes the name away first: half a directory, with markers of what has gone from it, is no preparation to go on with."""
    waste = work.with_suffix(".waste")
    shutil.rmtree(waste, ignore_errors=True)
    if work.exists():
        work.rename(waste)
        shutil.rmtree(waste, ignore_errors=True)


def tidy(root: Path, pulse: Callable[[], None], failed: bool = False) -> None:
    """Removes what nobody needs.

    Args:
        failed: a preparation failed: what nobody claims any more stays until one succeeds, which may take it.
    """
    with locked(root / f"{CLEANED}.lock", pulse):
        if not failed:
            _remove_abandoned(root)
        claimed: set[str] = set()
        under_way: set[str] = set()
        for path in (root / CLEANED / _CLAIMS).glob("*"):
            unfinished = (root / f"{path.name}.partial").is_dir()
            if unfinished or (root / path.name).is_dir():
                names = _claimed(path)
                claimed.update(names)
                under_way.update(names if unfinished else ())
            elif not failed or path.name.startswith(TEMPORARY_PREFIX):
                path.unlink(missing_ok=True)
        for folder in (CLEANED, CLASSIFIERS):
            _remove((root / folder).glob(f"{TEMPORARY_PREFIX}*"), under_way)
        if not failed:
            # Markers first: a part without one is made again.
            _remove(sorted((root / CLEANED).glob("documents-*"), key=lambda path: path.suffix != ".json"), claimed)
            _remove(filter(_is_old, (root / CLASSIFIERS).glob("[!.]*")), claimed)
            _remove(filter(_is_old, (root / DIGESTS).glob("*")), set())


def _remove(paths: Iterable[Path], needed: set[str]) -> None:
    for path in paths:
        if path.name.removeprefix(TEMPORARY_PREFIX).partition(".")[0] not in needed:
            path.unlink(missing_ok=True)


def _is_old(path: Path) -> bool:
    try:
        return path.stat().st_mtime < time.time() - _ABANDONED_SECONDS
    except FileNotFoundError:  # it just got another name
        return False


def _remove_abandoned(root: Path) -> None:
    for work in sorted(root.glob("*.partial")):
        with if_free(lock_of(root, work.stem)) as free:
            # Beside a data set that is whole it is what tasks of a dead driver wrote afterwards.
            if free and ((root / work.stem).is_dir() or all(map(_is_old, _written_by(root, work)))):
                discard(work)
    for waste in root.glob("*.waste"):
        shutil.rmtree(waste, ignore_errors=True)
    for lock in root.glob(".*.lock"):
        with if_free(lock):  # who lets go of a lock removes it
            pass


def _written_by(root: Path, work: Path) -> Iterator[Path]:
    """What an unfinished preparation has written, each attempt the claim at least."""
    claims = root / CLEANED / _CLAIMS / work.stem
    yield work
    yield from work.rglob("*")
    if claims.is_file():
        yield claims
        parts = (root / CLEANED / f"{name}.arrow" for name in _claimed(claims))
        yield from (part for part in parts if part.is_file())

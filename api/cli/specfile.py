"""Reading a job file before it is sent: paths mean what they mean in the caller's shell, ``--name`` wins over the file."""

from pathlib import Path
from typing import Any

from api.cli.console import CommandError
from service.validation import FieldError, SpecInvalid, load


class FileUnreadable(CommandError):
    """The job file does not exist, or cannot be read."""

    code = "file_unreadable"


def read(path: Path, name: str | None = None) -> dict[str, Any]:
    """The document in ``path`` (JSON is YAML too), with relative paths made absolute and ``name`` put in.

    Whether it is a valid job is for the validator to say. Raises FileUnreadable, SpecUnreadable, SpecInvalid (no mapping).
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise FileUnreadable(f"{path}: {error.strerror or error}") from error
    document = load(text)
    if not isinstance(document, dict):
        raise SpecInvalid([FieldError("", f"{path} holds no mapping of names to values")])
    return with_absolute_paths(document if name is None else {**document, "name": name}, Path.cwd())


def with_absolute_paths(document: dict[str, Any], base: Path) -> dict[str, Any]:
    """Every ``path`` of the data pipeline (sources, examples, classifiers, test sets), tokenizer, lexicon and ``init_from`` of
    ``document``, and of a study's base, seen from ``base``: the service runs elsewhere. Other shapes pass unchanged."""
    resolved = dict(document)
    if "data_pipeline" in document:
        resolved["data_pipeline"] = _all_absolute(document["data_pipeline"], base)
    if isinstance(document.get("tokenizer"), dict):
        resolved["tokenizer"] = _absolute(_absolute(document["tokenizer"], base), base, "lexicon")
    if isinstance(document.get("base"), dict):
        resolved["base"] = with_absolute_paths(document["base"], base)
    if _is_relative(document.get("init_from")):
        resolved["init_from"] = str(base / document["init_from"])
    return resolved


def _all_absolute(part: Any, base: Path) -> Any:
    if isinstance(part, list):
        return [_all_absolute(each, base) for each in part]
    if isinstance(part, dict):
        return _absolute({key: _all_absolute(each, base) for key, each in part.items()}, base)
    return part


def _absolute(part: Any, base: Path, key: str = "path") -> Any:
    if not isinstance(part, dict) or not _is_relative(part.get(key)):
        return part
    return {**part, key: str(base / part[key])}


def _is_relative(path: Any) -> bool:
    known = isinstance(path, str) and bool(path) and "://" not in path
    return known and not path.startswith(("stdlib:", "model:", "/", "~"))

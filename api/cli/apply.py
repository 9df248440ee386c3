"""A point into a job's file: what else is there, comments and order too, stays."""

from collections.abc import Mapping, MutableMapping, MutableSequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from api.cli.console import CommandError
from data.files import write_atomically


class NotWritable(CommandError):
    """The file is no training job that a point can be put into."""

    code = "job_not_writable"
    status = 422


def write_point(file: Path, point: Mapping[str, Any], job: Mapping[str, Any], *, name: str) -> None:
    """
    Args:
        point: dotted paths and their values.
        job: what to write where there is no file yet: the study's base with the point in it.

    Raises:
        NotWritable.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    if file.exists():
        try:
            document = yaml.load(file.read_text(encoding="utf-8"))
        except (YAMLError, UnicodeDecodeError) as error:
            raise NotWritable(f"{file} is no YAML: {error}") from error
        if not isinstance(document, MutableMapping):
            raise NotWritable(f"{file} holds no mapping of names to values")
        for path, value in point.items():
            _put(document, path.split("."), value, job)
    else:
        document = {"kind": "train", "name": f"{name}-best", **job}
    text = StringIO()
    yaml.dump(document, text)
    write_atomically(file, text.getvalue().encode())


def _put(here: Any, path: list[str], value: Any, job: Any) -> None:
    """``job`` holds at the same places what a list that the file does not give is made from."""
    part: Any = path[0]
    if isinstance(here, MutableSequence):
        part = int(part)
        if part >= len(here):
            raise NotWritable(f"a list of {len(here)} items has no item {part}")
    inner = job[part] if isinstance(job, Mapping) and part in job else None
    if len(path) == 1:
        here[part] = value
        return
    if isinstance(here, MutableMapping) and not isinstance(here.get(part), MutableMapping | MutableSequence):
        here[part] = list(inner) if isinstance(inner, list) else {}
    _put(here[part], path[1:], value, inner)

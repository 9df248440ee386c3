"""Reading a job file before it is sent: paths mean what they mean in the caller's shell, ``--name`` wins over the file."""

from pathlib import Path
from typing import Any

import yaml

from api.cli.console import CommandError


class FileUnreadable(CommandError):
    """The job file does not exist, or cannot be read."""

    code = "file_unreadable"


class NotYaml(CommandError):
    """The job file is neither YAML nor JSON; the detail names line and column."""

    code = "not_yaml"
    status = 422


def read(path: Path, name: str | None = None) -> dict[str, Any]:
    """The document in ``path`` (JSON is YAML too), with relative paths made absolute and ``name`` put in.

    Whether it is a valid job is for the validator to say. Raises FileUnreadable, NotYaml.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileUnreadable(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise NotYaml(f"{path} is not UTF-8 text (byte {error.start})") from error
    try:
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise NotYaml(f"{path} is not YAML{place}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise NotYaml(f"{path} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise NotYaml(f"{path} holds {type(document).__name__}, not a mapping of fields")
    if name is not None:
        document["name"] = name
    return with_absolute_paths(document, Path.cwd())


def with_absolute_paths(document: dict[str, Any], base: Path) -> dict[str, Any]:
    """Sources and tokenizer of ``document`` seen from ``base``: the service runs elsewhere. Other shapes pass unchanged."""
    resolved = dict(document)
    pipeline = document.get("data_pipeline")
    if isinstance(pipeline, dict) and isinstance(pipeline.get("sources"), list):
        sources = [_absolute(source, base) for source in pipeline["sources"]]
        resolved["data_pipeline"] = {**pipeline, "sources": sources}
    if isinstance(document.get("tokenizer"), dict):
        resolved["tokenizer"] = _absolute(document["tokenizer"], base)
    return resolved


def _absolute(part: Any, base: Path) -> Any:
    path = part.get("path") if isinstance(part, dict) else None
    if not isinstance(path, str) or not path or "://" in path or path.startswith(("stdlib:", "model:", "/", "~")):
        return part
    return {**part, "path": str(base / path)}

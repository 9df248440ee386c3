"""A point into a job's file. Only the values that change are written: every other character of the file stays."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from api.cli.console import CommandError
from data.files import write_atomically
from service.validation import load, parse_spec


class NotWritable(CommandError):
    """The file is no training job that a point can be put into."""

    code = "job_not_writable"
    status = 422


def write_point(file: Path, point: Mapping[str, Any], job: Mapping[str, Any], *, name: str) -> None:
    """
    Args:
        point: dotted paths and their values.
        job: the study's base with the point in it: what is written where there is no file yet, and what a list is made from
            that the file does not give.

    Raises:
        NotWritable: the file is of another kind, or written in a way that no value can be put into.
        SpecInvalid: it is no valid job, or would be none with the point.
    """
    if file.exists():
        text = with_point(file.read_bytes(), point, job, str(file))
    else:
        text = yaml.safe_dump({"kind": "train", "name": f"{name}-best"[-47:], **job}, sort_keys=False, allow_unicode=True)
    write_atomically(file, text.encode())


def with_point(content: bytes, point: Mapping[str, Any], job: Mapping[str, Any], file: str) -> str:
    document = load(content)
    if not isinstance(document, dict):
        raise NotWritable(f"{file} holds no mapping of names to values")
    if document.get("kind", "train") != "train":
        raise NotWritable(f"{file} is a job of kind {document['kind']}; a point goes into a training job")
    text = content.decode("utf-8-sig")
    wanted = document
    for path, value in point.items():
        parts = path.split(".")
        while len(parts) > 1 and parts[-1].isdigit() and not _holds(wanted, parts[:-1]):  # the whole list is given at once
            parts, value = parts[:-1], _at(job, parts[:-1])
        wanted = _put(wanted, parts, value)
        text = _edited(text, parts, value)
    if yaml.safe_load(text) != wanted:
        raise NotWritable(f"{file} is written in a way that no value can be put into; it is left as it was")
    parse_spec(text)
    return text


def _edited(text: str, path: list[str], value: Any) -> str:
    """``text`` with a value put at a path."""
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for depth, part in enumerate(path):
        child = _child(node, part)
        if child is None:
            return _inserted(text, node, path[depth:], value)
        node = child
    if _on_one_line(node):
        return text[: node.start_mark.index] + _flow(value) + text[node.end_mark.index :]
    return text  # a block of lines, which is not replaced; the caller sees that the value is not there


def _child(node: yaml.Node, part: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    items: list[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) and part.isdigit() else []
    return items[int(part)] if items and int(part) < len(items) else None


def _inserted(text: str, block: yaml.Node | None, path: list[str], value: Any) -> str:
    """``text`` with a key that ``block`` does not have."""
    nested = value
    for part in reversed(path[1:]):
        nested = {part: nested}
    if not isinstance(block, yaml.MappingNode):
        return text
    if _on_one_line(block) or not block.value:
        at = block.end_mark.index - 1
        return f"{text[:at]}{', ' if block.value else ''}{path[0]}: {_flow(nested)}{text[at:]}"
    first_key, last = block.value[0][0], block.value[-1][1]
    indent = " " * first_key.start_mark.column
    lines = yaml.safe_dump({path[0]: nested}, sort_keys=False, allow_unicode=True, width=10_000).splitlines()
    end = text.find("\n", _end(last))
    at = len(text) if end < 0 else end
    return text[:at] + "".join(f"\n{indent}{line}" for line in lines) + text[at:]


def _on_one_line(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) or (isinstance(node, yaml.CollectionNode) and bool(node.flow_style))


def _end(node: yaml.Node) -> int:
    """Where a node's own text ends: a block's mark lies behind the blank lines that follow."""
    if _on_one_line(node) or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _flow(value: Any) -> str:
    """On one line, as it may stand inside brackets too."""
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10_000).strip()[1:-1]


def _holds(document: Any, path: list[str]) -> bool:
    return _at(document, path) is not None


def _at(document: Any, path: list[str]) -> Any:
    for part in path:
        if isinstance(document, Mapping) and part in document:
            document = document[part]
        elif isinstance(document, list) and part.isdigit() and int(part) < len(document):
            document = document[int(part)]
        else:
            return None
    return document


def _put(document: Any, path: list[str], value: Any) -> Any:
    part, rest = path[0], path[1:]
    if isinstance(document, list):
        items = list(document)
        items[int(part)] = _put(items[int(part)], rest, value) if rest else value
        return items
    block = dict(document or {})
    block[part] = _put(block.get(part), rest, value) if rest else value
    return block

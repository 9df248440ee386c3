"""A job spec from text: YAML or JSON in, a typed job out, or every field that is wrong with the name that was meant."""

import difflib
import json
import re
import reprlib
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from data.errors import MantaError
from data.spec_base import Misfit
from data.stages.registry import place_by_domain
from service.spec import KINDS, AnyJob, DataJob, TuneJob
from workers.plan import plan

MAX_BYTES = 1 << 20
MAX_EXPANDED = 2 * MAX_BYTES
"""Characters and nodes of a YAML document once each alias stands for what it names: a few lines can say gigabytes."""
MAX_INTEGER = 2**63 - 1
"""What every database column and tensor index can hold."""
MAX_DIGITS = 1000
"""Of a number in YAML, whose numbers of base 60 (``1:59:59``) take time by the square of their length."""
_NUMBERS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
MAX_ERRORS = 100
"""No more are explained: whoever has that many wrong has sent another file."""


@dataclass(frozen=True)
class FieldError:
    """``pointer`` is a JSON pointer (RFC 6901) into the spec, empty for the whole of it."""

    pointer: str
    detail: str
    suggestion: str | None = None
    """The known name or value that was probably meant."""


class SpecInvalid(MantaError):
    """The job spec is not one. ``errors`` has one entry a field."""

    code = "spec_invalid"
    status = 422

    def __init__(self, errors: list[FieldError]) -> None:
        first = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{first.pointer or 'spec'}: {first.detail}{more}", pointer=first.pointer or None)
        self.errors = errors


class SpecUnreadable(SpecInvalid):
    """The text is not YAML or JSON, or says one thing twice."""

    code: ClassVar[str] = "spec_unreadable"


def parse_spec(text: str | bytes | dict[str, Any], content_type: str | None = None) -> AnyJob:
    """The job that ``text`` describes. JSON when ``content_type`` says so, else YAML (which holds JSON too).

    Raises ``SpecUnreadable`` and ``SpecInvalid``.
    """
    document = text if isinstance(text, dict) else load(text, content_type)
    if not isinstance(document, dict):
        found = "empty" if document is None else f"a {_json_type(document)}"
        raise SpecInvalid([FieldError("", f"a job spec is a mapping of names to values; this is {found}")])
    if unfit := _unfit(document):
        raise SpecInvalid(unfit)
    kind = document.get("kind", "train")
    if not isinstance(kind, str) or kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 1) if isinstance(kind, str) else []
        known = ", ".join(KINDS)
        raise SpecInvalid([FieldError("/kind", f"unknown kind {_short(kind)}; known: {known}", near[0] if near else None)])
    try:
        return KINDS[kind].spec.model_validate(document)
    except ValidationError as error:
        raise SpecInvalid(_field_errors(error, document, KINDS[kind].spec)) from None


def check_plan(job: AnyJob) -> None:
    """Raise ``SpecInvalid`` with a pointer for each thing that this version cannot run, rather than fail on the cluster."""
    if isinstance(job, DataJob):
        return
    base, block = (job.base, "/base") if isinstance(job, TuneJob) else (job, "")
    if problems := plan(base).problems:
        raise SpecInvalid([FieldError(block + problem.pointer, problem.detail) for problem in problems])
    if isinstance(job, TuneJob):
        _check_points(job)


def _check_points(study: TuneJob) -> None:
    """The points that a study names are to be tried: one that is no job is a mistake, not a trial less."""
    from tuning.space import JobSpace

    space = JobSpace(study)
    errors = []
    for number, point in enumerate(study.points):
        try:
            space.job(space.complete(point))
        except ValueError as error:
            errors.append(FieldError(f"/points/{number}", str(error)))
    if errors:
        raise SpecInvalid(errors)


def load(text: str | bytes, content_type: str | None = None) -> Any:
    """The document in ``text``, not yet looked at. Raises ``SpecUnreadable`` with line and column."""
    if len(text) > MAX_BYTES:
        _unreadable(f"the spec has {len(text)} bytes; at most {MAX_BYTES} are read")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            _unreadable(f"not UTF-8: {error.reason} at byte {error.start}")
    try:
        if content_type is not None and "json" in content_type.lower():
            return json.loads(text, object_pairs_hook=_unique_pairs, parse_constant=_no_constant)
        return yaml.load(text, Loader=_Loader)
    except json.JSONDecodeError as error:
        _unreadable(f"not JSON: {error.msg}, line {error.lineno}, column {error.colno}")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        _unreadable(f"not YAML: {error.problem or error.context}{where}")
    except yaml.YAMLError as error:
        _unreadable(f"not YAML: {' '.join(str(error).split())}")
    except RecursionError:
        _unreadable("nested too deeply")
    except ValueError as error:  # a number of more digits than Python reads
        _unreadable(f"not JSON: {error}")


def _unreadable(detail: str, pointer: str = "") -> NoReturn:
    raise SpecUnreadable([FieldError(pointer, detail)])


class _Loader(yaml.SafeLoader):
    """YAML where a key that stands twice in one mapping is an error, as YAML 1.2 says, and that stays small."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _expanded(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            if node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
                raise ValueError("too long")
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # PyYAML lets what its scalar constructors stumble over through: dates that are none, tags that do not fit.
            kind = node.tag.rpartition(":")[2]
            problem = f"{_short(node.value)} is no {kind}" if isinstance(node, yaml.ScalarNode) else f"this is no {kind}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (first := seen.get(key.value)) is not None:
                problem = f"the key {_short(key.value)} was given before, in line {first.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen[key.value] = key
        return super().construct_mapping(node, deep)


def _expanded(node: yaml.Node, sizes: dict[yaml.Node, int]) -> int:
    """Nodes and characters of ``node`` with its aliases written out. ``sizes`` has those of nodes that were seen; 0: it is
    being counted, so it holds itself."""
    if (known := sizes.get(node)) is not None:
        if known == 0:
            raise yaml.constructor.ConstructorError(None, None, "this holds itself", node.start_mark)
        return known
    sizes[node] = 0
    size = 1
    if isinstance(node, yaml.MappingNode):
        size += sum(_expanded(key, sizes) + _expanded(value, sizes) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_expanded(item, sizes) for item in node.value)
    else:
        size += len(node.value)
    if size > MAX_EXPANDED:
        problem = f"its aliases stand for more than {MAX_EXPANDED} characters"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    sizes[node] = size
    return size


def _unfit(document: Any) -> list[FieldError]:
    """What can be read but neither stored nor sent on: text that UTF-8 cannot encode, integers beyond 64 bits."""
    errors: list[FieldError] = []
    rest: list[tuple[tuple[str | int, ...], Any]] = [((), document)]
    while rest and len(errors) < MAX_ERRORS:
        path, value = rest.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                rest += [((*path, key), key), ((*path, key), inner)]
        elif isinstance(value, list):
            rest += [((*path, at), inner) for at, inner in enumerate(value)]
        elif isinstance(value, str) and not value.isascii() and _SURROGATE.search(value):
            errors.append(FieldError(pointer(path), "this text has a lone surrogate, which is no character"))
        elif isinstance(value, int) and abs(value) > MAX_INTEGER:
            errors.append(FieldError(pointer(path), "this integer does not fit 64 bits"))
    return errors


_SURROGATE = re.compile("[\ud800-\udfff]")


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        _unreadable(f"the key {_short(twice)} is given twice")
    return unique


def _no_constant(name: str) -> NoReturn:
    _unreadable(f"not JSON: {name} is not a JSON number")


# -- what pydantic says, in terms of the document --------------------------------------------------------------------------


def _field_errors(error: ValidationError, document: Any, model: type[BaseModel]) -> list[FieldError]:
    """One entry a place: what a union says for each of its members is joined."""
    details: dict[tuple[str | int, ...], list[str]] = {}
    suggestions: dict[tuple[str | int, ...], str] = {}
    for each in error.errors(include_url=False)[:MAX_ERRORS]:
        tag = (each["ctx"]["discriminator"].strip("'"),) if each["type"] == "union_tag_invalid" else ()
        path = _path((*each["loc"], *tag), document, missing=each["type"] == "missing")
        if each["type"] == "value_error" and isinstance(misfit := each["ctx"]["error"], Misfit):
            path = _to_blame(misfit, path, document)
        detail, suggestion = _explain(each, path, model)
        if each["type"] == "too_short" and any(path == other[: len(path)] for other in details):
            continue  # pydantic counts the items that are valid; those that are not were named already
        if detail not in details.setdefault(path, []):
            details[path].append(detail)
        if suggestion is not None:
            suggestions.setdefault(path, suggestion)
    return [FieldError(pointer(path), "; or ".join(texts), suggestions.get(path)) for path, texts in details.items()]


def _path(location: tuple[str | int, ...], document: Any, *, missing: bool) -> tuple[str | int, ...]:
    """``location`` without what is no part of the document: the tags of unions, ``[key]`` marks. A stage given by domain
    has its number there, not that among all."""
    path: list[str | int] = []
    here = document
    for part in location:
        if isinstance(part, int) and isinstance(here, dict) and path[-1:] == ["stages"]:
            domain, part = place_by_domain(here, part)
            path.append(domain)
            here = here[domain]
        if _holds(here, part):
            here = here[part]
        elif not (missing and part == location[-1]):
            continue
        path.append(part)
    return tuple(path)


def _to_blame(misfit: Misfit, block: tuple[str | int, ...], document: Any) -> tuple[str | int, ...]:
    """The first of the fields that do not go together that the document gives itself; the block, where it gives none."""
    paths = [(*block, *(name.split(".") if isinstance(name, str) else name)) for name in misfit.fields]
    return next((path for path in paths if _path(path, document, missing=False) == path), block)


def _holds(value: Any, part: str | int) -> bool:
    return part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int) and part < len(value)


def pointer(path: tuple[str | int, ...]) -> str:
    parts = ("?" if isinstance(part, int) and abs(part) > MAX_INTEGER else _SURROGATE.sub("?", str(part)) for part in path)
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def _explain(error: Any, path: tuple[str | int, ...], model: type[BaseModel]) -> tuple[str, str | None]:
    match error["type"]:
        case "extra_forbidden":
            name = str(path[-1])
            suggestion = _nearest(name, error["loc"][:-1], model)
            return f"unknown field {_short(name)}" + (f"; did you mean {suggestion}?" if suggestion else ""), suggestion
        case "missing":
            return "this field is required", None
        case "literal_error":
            expected = error["ctx"]["expected"]
            near = difflib.get_close_matches(
                _short(error["input"]).strip("'"), [word.strip("'") for word in _words(expected)], 1
            )
            hint = f"; did you mean {near[0]}?" if near else ""
            return f"expected {expected}, not {_short(error['input'])}{hint}", near[0] if near else None
        case "union_tag_invalid":
            kind, known = error["ctx"]["discriminator"].strip("'"), error["ctx"]["expected_tags"].replace("'", "")
            near = difflib.get_close_matches(error["ctx"]["tag"], known.split(", "), 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {known}"
            return f"no {kind} {_short(error['ctx']['tag'])}; {hint}", near[0] if near else None
        case "union_tag_not_found":
            return "this needs a {}, by its name".format(error["ctx"]["discriminator"].strip("'")), None
        case "value_error":
            return str(error["ctx"]["error"]), None
        case "string_pattern_mismatch" if path == ("name",):
            return "lower-case letters, digits and dashes, a letter or digit first and last", None
        case _:
            text = re.sub(r"^(Input|List|Tuple|String|Dictionary) should", "should", str(error["msg"]))
            scalar = isinstance(error["input"], str | int | float | bool | None)
            return f"{text}, not {_short(error['input'])}" if scalar and text.startswith("should") else text, None


def _words(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").split(", ")


def _nearest(name: str, parent: tuple[str | int, ...], model: type[BaseModel]) -> str | None:
    """A known name like ``name`` in the same block, else the one place elsewhere where that very name is known."""
    names = [field for block in _models_at(model, parent) for field in block.model_fields]
    if near := difflib.get_close_matches(name, names, 1):
        return near[0]
    elsewhere = [path for path in _all_fields(model) if path.rsplit(".", 1)[-1] == name]
    return elsewhere[0] if len(elsewhere) == 1 else None


def _models_at(model: type[BaseModel], location: tuple[str | int, ...]) -> list[type[BaseModel]]:
    """The models that may describe the block at ``location``, as pydantic names it: the tag of a union leaves one of them, list
    positions stay within the list's item."""
    here = [model]
    for part in location:
        if fields := [block.model_fields[part] for block in here if part in block.model_fields]:
            here = [inner for field in fields for inner in _models(field.annotation)]
        elif isinstance(part, str):
            here = [block for block in here if _is_tagged(block, part)]
    return here


def _is_tagged(block: type[BaseModel], tag: str) -> bool:
    return block.__name__ == tag or any(get_args(field.annotation) == (tag,) for field in block.model_fields.values())


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside an annotation such as ``tuple[Source, ...]`` or ``Model | None``."""
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _all_fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _models(field.annotation):
            yield from _all_fields(inner, f"{prefix}{name}.")


def _short(value: Any) -> str:
    return _REPR.repr(value)


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def _json_type(value: Any) -> str:
    return "list" if isinstance(value, list) else "text" if isinstance(value, str) else "single value"

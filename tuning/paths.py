"""Dotted paths into a training job: ``training.learning_rate``, ``training.betas.0``."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel

from workers.spec import TrainSpec


def require_path(path: str) -> str:
    """
    Raises:
        ValueError: a training job has no such field; the message names the nearest.
    """
    here: tuple[Any, ...] = (TrainSpec,)
    done: list[str] = []
    for part in path.split("."):
        inner = [found for each in here if (found := _inside(each, part)) is not None]
        if not inner:
            where = f" in {'.'.join(done)}" if done else ""
            raise ValueError(f"{path}: a training job has no field {part!r}{where}{_hint(path, part, here)}")
        here = tuple(member for annotation in inner for member in _members(annotation))
        done.append(part)
    return path


Path = Annotated[str, AfterValidator(require_path)]


def get(job: Any, path: str) -> Any:
    """
    Raises:
        LookupError: nothing is there.
    """
    here = job
    for part in path.split("."):
        if isinstance(here, BaseModel) and part in type(here).model_fields:  # of a union, another member may have it
            here = getattr(here, part)
        elif isinstance(here, Sequence) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        elif isinstance(here, Mapping) and part in here:
            here = here[part]
        else:
            raise LookupError(f"nothing is at {path}")
    return here


def put(document: Any, path: str, value: Any, job: Any) -> Any:
    """A copy of ``document`` with ``value`` at ``path``. Blocks that it does not give are made; lists, taken from ``job``.

    Args:
        job: what ``document`` stands for, defaults and all.

    Raises:
        LookupError: a list has no such item.
    """
    part, _, rest = path.partition(".")
    if document is None and isinstance(job, Sequence):
        document = [item.model_dump(mode="json") if isinstance(item, BaseModel) else item for item in job]
    inner = _or_none(job, part)
    if isinstance(document, Sequence):
        items = list(document)
        items[int(part)] = put(items[int(part)], rest, value, inner) if rest else value
        return items
    block = dict(document or {})
    block[part] = put(block.get(part), rest, value, inner) if rest else value
    return block


def _or_none(job: Any, part: str) -> Any:
    try:
        return get(job, part)
    except LookupError:
        return None


def _members(annotation: Any) -> Iterator[Any]:
    """What a value of this annotation may be, without ``Annotated`` and ``|``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for argument in get_args(annotation):
            yield from _members(argument)
    elif annotation is not type(None):
        yield annotation


def _inside(annotation: Any, part: str) -> Any:
    """The annotation of a part of such a value; None if it has none of that name."""
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(part)
        return None if field is None else field.annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple and part.isdigit():
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return arguments[0]
        return arguments[int(part)] if int(part) < len(arguments) else None
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return arguments[1]
    return None


def _hint(path: str, part: str, here: Sequence[Any]) -> str:
    names = [name for each in here if isinstance(each, type) and issubclass(each, BaseModel) for name in each.model_fields]
    if near := difflib.get_close_matches(part, names, 1):
        return f"; did you mean {near[0]}?"
    last = path.rpartition(".")[2]
    elsewhere = [known for known in _leaves(TrainSpec) if known.rpartition(".")[2] == last]
    return f"; did you mean {elsewhere[0]}?" if len(elsewhere) == 1 else ""


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for member in _members(field.annotation):
            if isinstance(member, type) and get_origin(member) is None and issubclass(member, BaseModel):
                yield from _leaves(member, f"{prefix}{name}.")

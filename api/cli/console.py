"""What every command shares: where text goes, what ``-o json`` prints, the error screen and the exit statuses."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data.errors import MantaError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, RenderableType

PIPE_WIDTH = 160
"""Columns of a table that no terminal shows: wide enough that nothing of use is cut."""


class Status(IntEnum):
    """Exit statuses. ``submit --watch`` and ``watch`` end with the job's own."""

    SUCCEEDED = 0
    FAILED = 1
    """The job failed, or the request was refused (no such job, not in this state)."""
    BAD_INPUT = 2
    """Wrong usage, or a job spec that is not valid."""
    CANCELLED = 3
    """The job was cancelled."""
    UNAVAILABLE = 4
    """The service does not answer."""
    INTERRUPTED = 130
    """Ctrl-C here; a job that was only watched goes on."""


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"


class CommandError(MantaError):
    """Something about this machine or this call that the user can mend."""

    code = "command"
    status = 400


def _remember(context: typer.Context, value: Format) -> Format:
    context.meta[__name__] = value
    return value


Output = Annotated[
    Format, typer.Option("--output", "-o", callback=_remember, help="text for people, json for programs.", show_choices=True)
]


def stdout(*, width: int | None = None) -> "Console":
    """A console for what was asked for. Off a terminal: plain, and wide enough not to cut tables."""
    from rich.console import Console

    return Console(width=width or (None if sys.stdout.isatty() else PIPE_WIDTH), highlight=False, soft_wrap=False)


def stderr() -> "Console":
    """A console for progress and errors, which no pipe should carry."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else PIPE_WIDTH)


def as_json(value: Any) -> Any:
    """A view, or a list or mapping of views, as plain JSON values. Keys are the API's own."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


def show(value: "BaseModel | Mapping[str, Any] | Sequence[Any]", text: "RenderableType | None", output: Format) -> None:
    """Print ``value`` as one JSON document, or ``text`` for people (nothing if None)."""
    if output is Format.JSON:
        sys.stdout.write(json.dumps(as_json(value), indent=2, default=str) + "\n")
    elif text is not None:
        stdout().print(text)


def show_lines(values: "Iterable[BaseModel | Mapping[str, Any]]") -> None:
    """JSON lines: one document a value, written as it comes. What ``-o json`` prints of a stream."""
    for value in values:
        sys.stdout.write(json.dumps(as_json(value), default=str) + "\n")
        sys.stdout.flush()


def field_errors(error: MantaError) -> list[dict[str, str]]:
    """``[{pointer, detail, suggestion}]`` of an error, whether it came over HTTP or was raised here."""
    fields: list[dict[str, str]] = []
    for entry in getattr(error, "errors", None) or []:
        values = as_json(entry)
        if not isinstance(values, dict):
            values = vars(entry) if hasattr(entry, "__dict__") else {"detail": str(entry)}
        fields.append({key: str(item) for key, item in values.items() if item not in (None, "")})
    if not fields and error.pointer:
        fields.append({"pointer": error.pointer, "detail": error.detail})
    return fields


def problem(error: MantaError) -> dict[str, Any]:
    """An error in the shape of RFC 9457, as the API would answer it."""
    return {"code": error.code, "status": error.status, "detail": error.detail, "errors": field_errors(error)}


def error_screen(error: MantaError) -> "RenderableType":
    """The same for people, in one screen: what is wrong, then one line a field with the name that was probably meant."""
    from rich.console import Group
    from rich.markup import escape
    from rich.text import Text

    lines: list[RenderableType] = [
        Text.from_markup(f"[bold red]error[/] {escape(error.detail)} [dim]({escape(error.code)})[/]")
    ]
    for entry in field_errors(error):
        pointer, detail, suggestion = entry.get("pointer", ""), entry.get("detail", ""), entry.get("suggestion", "")
        if error.detail in (f"{pointer}: {detail}", f"spec: {detail}"):
            continue  # the only one, and said
        if pointer == error.pointer and detail == error.detail:
            detail = ""
        hint = f" [dim]did you mean[/] [green]{escape(suggestion)}[/]?" if suggestion and suggestion not in detail else ""
        lines.append(Text.from_markup(f"  [cyan]{escape(pointer or '/')}[/]  {escape(detail)}{hint}".rstrip()))
    return Group(*lines)


def exit_status(error: MantaError) -> Status:
    """The exit status that an error ends the command with."""
    if error.status in (400, 422):
        return Status.BAD_INPUT
    return Status.UNAVAILABLE if error.status in (502, 503, 504) else Status.FAILED


def fail(error: MantaError, output: Format) -> Status:
    """Print an error where errors belong, as the user asked to read things."""
    if output is Format.JSON:
        sys.stderr.write(json.dumps(problem(error), indent=2) + "\n")
    else:
        stderr().print(error_screen(error))
    return exit_status(error)


def chosen_format(context: typer.Context) -> Format:
    """What ``-o`` said in this call, also for an error raised before the command's own code ran."""
    value = context.meta.get(__name__, Format.TEXT)
    return value if isinstance(value, Format) else Format.TEXT

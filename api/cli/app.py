"""The Typer application that the command modules register with, and the one place where errors become exit statuses."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from api.cli.console import CommandError, Status, chosen_format, fail
from data.errors import MantaError

EPILOG = (
    "Exit status: 0 succeeded; 1 job failed or request refused; 2 wrong usage or job spec; 3 job cancelled;"
    " 4 service does not answer; 130 Ctrl-C (a job that was only watched goes on)."
)


class Commands(TyperGroup):
    """A group whose commands end a user's mistake with one screen and an exit status, never with a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MantaError as error:
            raise typer.Exit(fail(error, chosen_format(ctx))) from error
        except ValueError as error:
            if (other := _another_version(error)) is None:
                raise
            raise typer.Exit(fail(other, chosen_format(ctx))) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(Status.INTERRUPTED) from error


class AnotherVersion(CommandError):
    """The service answers in a shape that this command does not know."""

    code = "another_version"
    status = 503


def _another_version(error: ValueError) -> AnotherVersion | None:
    from pydantic import ValidationError

    if not isinstance(error, ValidationError) or not error.title.endswith("View"):
        return None
    return AnotherVersion(
        "the service that runs is of another version than this command (what was asked for may be done);"
        " `manta down` and `manta up` start this one"
    )


app = typer.Typer(
    name="manta",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=EPILOG,
    help="Train mixture-of-experts language models from one YAML file, on one machine or many.",
)


@app.callback()
def root(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(envvar="MANTA_URL", help="Base URL of the service; without it, the one that `manta up` started here."),
    ] = None,
) -> None:
    context.obj = url

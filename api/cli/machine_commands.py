"""Commands on this machine: start and stop Manta, look at a job before it runs, examine the machine, run the demo."""

import os
from pathlib import Path
from typing import Annotated

import typer

from api.cli.app import app
from api.cli.console import Format, Output, Status, show, stderr
from api.cli.jobs import FileArgument


@app.command()
def up(
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Run here, until Ctrl-C, instead of in the background.")
    ] = False,
    output: Output = Format.TEXT,
) -> None:
    """Start Manta on this machine: the service and, unless MANTA_RAY_ADDRESS is set, a local cluster."""
    from api.cli import local
    from api.settings import Settings

    settings = Settings.read()
    if foreground:
        if there := local.services(settings):
            raise local.AlreadyRunning(f"a Manta of {settings.home} runs already (pid {there[0]}); `manta down` stops it")
        stderr().print("Ctrl-C stops the service. Jobs and the local cluster go on without it; `manta down` stops the cluster.")
        # This process becomes the service: its signals, its terminal, its exit status.
        os.execve(local.command()[0], local.command(), local.environment(settings, os.environ))
    with stderr().status("Starting Manta: service and local cluster"):
        running, started = local.start(settings)
    facts = {"url": running.url, "pid": running.pid, "home": str(settings.home), "started": started}
    how = "Manta is up" if started else "Manta is up already"
    show(facts, f"{how} at [bold]{running.url}[/] (pid {running.pid}, log {local.log_file(settings)}).", output)


@app.command()
def down(
    keep_cluster: Annotated[bool, typer.Option("--keep-cluster", help="Stop only the service; running jobs go on.")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Stop the service of this machine and its local cluster."""
    from api.cli import local
    from api.settings import Settings

    with stderr().status("Stopping Manta"):
        facts = local.stop(Settings.read(), keep_cluster=keep_cluster)
    said = "The service is stopped." if facts["service"] else "No service was running."
    said += " The local cluster is stopped." if facts["cluster"] else ""
    show(facts, said, output)


@app.command()
def plan(file: FileArgument, output: Output = Format.TEXT) -> None:
    """What FILE would run, without running it: resolved spec, parameters, steps, tokens, memory per worker, problems."""
    from api.cli import plan as planning
    from api.cli import specfile

    found = planning.make(specfile.read(file))
    show(planning.as_document(found), planning.page(found), output)
    if not found.runnable:
        raise typer.Exit(Status.BAD_INPUT)


@app.command()
def doctor(context: typer.Context, output: Output = Format.TEXT) -> None:
    """What this machine has, what it lacks for Manta, and how to get it."""
    from api.cli import doctor as examination
    from api.cli.machine import ThisMachine

    with stderr().status("Looking round"):
        checks = examination.examine(ThisMachine(context.obj))
    show(examination.as_document(checks), examination.page(checks), output)
    if not examination.passed(checks):
        raise typer.Exit(Status.FAILED)


@app.command()
def demo(
    file: Annotated[Path | None, typer.Option(help="Another job than examples/quickstart.yaml.")] = None,
    home: Annotated[Path | None, typer.Option(help="Where the demo keeps its things (default: ~/.cache/manta/demo).")] = None,
    record: Annotated[Path | None, typer.Option(help="Write the screen to this SVG file.")] = None,
    output: Output = Format.TEXT,
) -> None:
    """Start Manta, train a small model on this Python's own texts, show the result, stop Manta."""
    from api.cli import demo as road
    from api.cli.demo_manta import DemoManta

    raise typer.Exit(road.main(DemoManta, file=file, home=home, record=record, output=output))


@app.command()
def version(output: Output = Format.TEXT) -> None:
    """The version of Manta."""
    from importlib import metadata

    number = metadata.version("manta")
    show({"version": number}, f"manta {number}", output)

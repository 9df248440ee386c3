"""Commands on jobs. Each finds its job, asks the API for one thing and shows it."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.app import app
from api.cli.console import Format, Output, as_json, show, show_lines, stderr, stdout

if TYPE_CHECKING:
    from api.client import Client
    from service.views import JobView

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id, beginning of an id, or name (the newest of that name).")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Job spec, YAML or JSON.")]


def _client(context: typer.Context) -> "Client":
    from api.cli.connect import connect

    return connect(context.obj)


def _found(client: "Client", reference: str) -> "JobView":
    from api.cli.connect import find

    return find(client, reference)


@app.command()
def submit(
    context: typer.Context,
    file: FileArgument,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the job; end with its exit status.")] = False,
    name: Annotated[str | None, typer.Option(help="Name the job so, whatever the file says.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting again with the same key and spec gives the same job, not a second one.")
    ] = None,
    output: Output = Format.TEXT,
) -> None:
    """Submit a job. Relative paths in FILE are seen from the current directory."""
    from api.cli import specfile

    document = specfile.read(file, name)
    client = _client(context)
    job = client.submit(document, idempotency_key=idempotency_key)
    if not watch:
        follow = "tune watch" if job.kind == "tune" else "watch"
        show(job, f"[bold]{job.name}[/] {job.id} is {job.state.value}. `manta {follow} {job.name}` follows it.", output)
        return
    _watch(client, job, output)


@app.command()
def watch(context: typer.Context, job: JobArgument, output: Output = Format.TEXT) -> None:
    """Follow a job to its end, live; end with its exit status. With -o json: one JSON line a change."""
    client = _client(context)
    _watch(client, _found(client, job), output)


def _watch(client: "Client", job: "JobView", output: Format) -> None:
    import time

    from api.cli.connect import ClientSource
    from api.cli.feed import follow
    from api.cli.watch import EXIT_OF, as_lines
    from api.cli.watch import show as show_updates

    updates = follow(ClientSource(client), job.id, time.sleep)
    try:
        if output is Format.JSON:
            before = None
            for update in updates:
                show_lines(as_lines(update, before))
                before = job = update.job
        else:
            job = show_updates(updates, stdout())
            _print_end(job)
    except KeyboardInterrupt:
        stderr().print(f"\n{job.name} goes on. `manta watch {job.id}` follows it again, `manta cancel {job.id}` ends it.")
        raise
    raise typer.Exit(EXIT_OF[job.state])


def _print_end(job: "JobView") -> None:
    from api.cli import pages

    if job.failure:
        stdout().print(pages.failure_text(job.failure))
    elif job.kind == "tune":
        stderr().print(f"`manta tune show {job.name}` shows what was found.", markup=False)
    elif job.result and job.kind == "train":
        stdout().print(pages.result_table(job.result))
    elif job.kind == "data" and job.state == "succeeded":
        if job.result:  # a job of an earlier version has none
            stdout().print(pages.data_table(job.result))
        stderr().print(f"`manta data report {job.name}` shows what became of the documents.", markup=False)


@app.command("list")
def list_jobs(
    context: typer.Context,
    state: Annotated[list[str] | None, typer.Option(help="Only jobs in this state; may be given more than once.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs of this name.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="`next_cursor` of the page before.")] = None,
    output: Output = Format.TEXT,
) -> None:
    """List jobs, newest first."""
    from api.cli import pages

    page = _client(context).list(state=state or [], kind=kind, name=name, limit=limit, cursor=cursor)
    show(page, pages.job_list(page.items, datetime.now(UTC)), output)
    if output is Format.TEXT and page.next_cursor:
        stderr().print(f"[dim]more: manta list --cursor {page.next_cursor}[/]")


@app.command("show")
def show_job(context: typer.Context, job: JobArgument, output: Output = Format.TEXT) -> None:
    """The job page: states, progress, what died and what it cost, attempts, workers, checkpoints, result."""
    from api.cli import pages
    from api.cli.connect import every_event

    client = _client(context)
    found = _found(client, job)
    attempts, workers = client.attempts(found.id), client.workers(found.id)
    events, checkpoints = every_event(client, found.id), client.checkpoints(found.id)
    if output is Format.JSON:
        parts = {"job": found, "attempts": attempts, "workers": workers, "events": events, "checkpoints": checkpoints}
        show(as_json(parts), None, output)
        return
    now = datetime.now(UTC)
    page = pages.job_page(found, attempts=attempts, workers=workers, events=events, checkpoints=checkpoints, now=now)
    stdout().print(page)


@app.command()
def events(context: typer.Context, job: JobArgument, output: Output = Format.TEXT) -> None:
    """What happened to a job, in order, and by whom."""
    from api.cli import pages
    from api.cli.connect import every_event

    client = _client(context)
    found = every_event(client, _found(client, job).id)
    show(found, pages.events_table(found), output)


@app.command()
def checkpoints(context: typer.Context, job: JobArgument, output: Output = Format.TEXT) -> None:
    """The checkpoints of a job."""
    from api.cli import pages

    client = _client(context)
    found = client.checkpoints(_found(client, job).id)
    show(found, pages.checkpoints_table(found), output)


@app.command()
def logs(
    context: typer.Context,
    job: JobArgument,
    rank: Annotated[int | None, typer.Option(help="Only this worker; -1 is the driver. Without it, all, by time.")] = None,
    attempt: Annotated[int | None, typer.Option(help="Only this attempt.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    output: Output = Format.TEXT,
) -> None:
    """What driver and workers wrote, merged by time."""
    client = _client(context)
    found = _found(client, job)
    for line in client.stream_logs(found.id, rank=rank, attempt=attempt, follow=follow):
        if output is Format.JSON:
            show_lines([line])
        else:
            who = "" if rank is not None else "driver | " if line.rank < 0 else f"rank {line.rank} | "
            sys.stdout.write(f"{who}{line.text}\n")
            sys.stdout.flush()


@app.command()
def pause(context: typer.Context, job: JobArgument, output: Output = Format.TEXT) -> None:
    """Checkpoint, then end the attempt. `manta resume` goes on from there."""
    client = _client(context)
    _told(client.pause(_found(client, job).id), "will pause at its next checkpoint", output)


@app.command()
def resume(context: typer.Context, job: JobArgument, output: Output = Format.TEXT) -> None:
    """Go on with a paused job, from its checkpoint."""
    client = _client(context)
    _told(client.resume(_found(client, job).id), "will go on", output)


@app.command()
def cancel(context: typer.Context, job: JobArgument, output: Output = Format.TEXT) -> None:
    """End a job. Its checkpoints stay."""
    client = _client(context)
    _told(client.cancel(_found(client, job).id), "will end", output)


@app.command()
def retry(context: typer.Context, job: JobArgument, output: Output = Format.TEXT) -> None:
    """Run a failed or cancelled job again from its last checkpoint, with a fresh budget of attempts."""
    client = _client(context)
    _told(client.retry(_found(client, job).id), "will run again", output)


@app.command()
def delete(context: typer.Context, job: JobArgument, output: Output = Format.TEXT) -> None:
    """Delete a job that has ended, with everything it stored."""
    client = _client(context)
    found = _found(client, job)
    client.delete(found.id)
    show({"id": found.id, "deleted": True}, f"{found.name} {found.id} is deleted.", output)


def _told(job: "JobView", what: str, output: Format) -> None:
    show(job, f"[bold]{job.name}[/] {job.id} {what} (now {job.state.value}).", output)

"""`manta tune`: look at studies, follow them live, and write their best point into a job."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.app import Commands, app
from api.cli.console import CommandError, Format, Output, show, stderr, stdout

if TYPE_CHECKING:
    from api.client import Client
    from service.views import JobView
    from tuning.views import TrialView

tune = typer.Typer(name="tune", cls=Commands, no_args_is_help=True, rich_markup_mode=None, help="Studies: searches over jobs.")
app.add_typer(tune)

StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="Id, beginning of an id, or name (the newest of that name).")
]
Trial = Annotated[int | None, typer.Option(help="This trial, not the best one.", min=0)]


class NotAStudy(CommandError):
    """The job is of another kind."""

    code = "not_a_study"
    status = 404


class NoSuchTrial(CommandError):
    """A study has no trial of that number, or none that has a result yet."""

    code = "trial_not_found"
    status = 404


@tune.command("show")
def show_study(context: typer.Context, study: StudyArgument, output: Output = Format.TEXT) -> None:
    """Best so far, importance, cost spent and saved, the newest trials."""
    from rich.console import Group

    from api.cli.study_pages import study_head, study_page

    client, job = _found(context, study)
    view = client.study(job.id)
    text = None if output is Format.JSON else Group(study_head(view.job), study_page(view, every_trial(client, job.id)))
    show(view, text, output)


@tune.command()
def watch(context: typer.Context, study: StudyArgument) -> None:
    """Follow a study to its end, live; end with its exit status."""
    import time

    from api.cli.connect import ClientSource
    from api.cli.feed import follow
    from api.cli.pages import failure_text
    from api.cli.watch import EXIT_OF
    from api.cli.watch import show as show_updates
    from api.cli.watch_study import StudyScreen, TrialLines

    client, job = _found(context, study)
    screen = StudyScreen(lambda: (client.study(job.id), every_trial(client, job.id)))
    try:
        job = show_updates(follow(ClientSource(client), job.id, time.sleep), stdout(), screen=screen, plain=TrialLines(screen))
        if job.failure:
            stdout().print(failure_text(job.failure))
    except KeyboardInterrupt:
        stderr().print(f"\n{job.name} goes on. `manta tune watch {job.id}` follows it again, `manta cancel {job.id}` ends it.")
        raise
    raise typer.Exit(EXIT_OF[job.state])


@tune.command()
def trials(context: typer.Context, study: StudyArgument, output: Output = Format.TEXT) -> None:
    """Every trial, by number."""
    from api.cli.study_pages import trials_table

    client, job = _found(context, study)
    found = every_trial(client, job.id)
    show(found, trials_table(found), output)


@tune.command()
def apply(
    context: typer.Context,
    study: StudyArgument,
    file: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The training job to write into; comments stay.")],
    trial: Trial = None,
) -> None:
    """Write the best point into a training job. A file that is not there is made, from the study's base. Of a population, that
    is the last point of a schedule."""
    from api.cli.apply import write_point

    client, job = _found(context, study)
    chosen = _chosen(client, job, trial)
    write_point(file, chosen.point, client.trial_job(job.id, chosen.number), name=job.name)
    values = ", ".join(f"{name} {value:.5g}" for name, value in chosen.values.items()) or chosen.state
    stderr().print(f"{file} has the point of trial {chosen.number} of {job.name} ({values}).", markup=False)
    if len(chosen.lineage) > 1:
        steps = ", ".join(str(step) for step, _ in chosen.lineage[1:])
        stderr().print(
            f"It is the last of a schedule: the trial's weights were trained with other points before, which changed at step"
            f" {steps}. `manta tune trials {job.name} -o json` has them as its lineage.",
            markup=False,
        )


@tune.command()
def extend(
    context: typer.Context,
    study: StudyArgument,
    trials: Annotated[int | None, typer.Option(help="Trials in all.", min=1)] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps in all.", min=1)] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds in all.", min=0)] = None,
    output: Output = Format.TEXT,
) -> None:
    """Give a study that has ended, or is paused, a larger budget; one that has ended goes on where it was."""
    budget = {name: value for name, value in (("trials", trials), ("steps", steps), ("seconds", seconds)) if value is not None}
    if not budget:
        raise typer.BadParameter("say what there is more of: --trials, --steps or --seconds, each in all")
    client, job = _found(context, study)
    extended = client.extend(job.id, **budget)
    show(extended, f"[bold]{job.name}[/] {job.id} has a larger budget (now {extended.state.value}).", output)


@tune.command()
def figure(
    context: typer.Context,
    study: StudyArgument,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="history, importances, parallel, slice, intermediate, timeline or pareto.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write an HTML page that needs nothing else, not JSON.")] = None,
) -> None:
    """One of Optuna's figures, as Plotly's JSON or as a page."""
    client, job = _found(context, study)
    drawn = client.figure(job.id, name)
    if out is None:
        sys.stdout.write(json.dumps(drawn) + "\n")
        return
    import plotly.io

    out.write_text(plotly.io.to_html(drawn, include_plotlyjs=True, full_html=True), encoding="utf-8")
    stderr().print(f"{out} shows {name} of {job.name}.", markup=False)


@tune.command()
def export(context: typer.Context, study: StudyArgument) -> None:
    """The study's journal as JSON lines: Optuna's JournalFileBackend reads it."""
    client, job = _found(context, study)
    for line in client.journal(job.id):
        sys.stdout.write(json.dumps(line) + "\n")


def _found(context: typer.Context, reference: str) -> "tuple[Client, JobView]":
    from api.cli.connect import connect, find

    client = connect(context.obj)
    job = find(client, reference)
    if job.kind != "tune":
        raise NotAStudy(f"{job.name} is no study: it is of kind {job.kind}")
    return client, job


def every_trial(client: "Client", job_id: str) -> "list[TrialView]":
    found: list[TrialView] = []
    cursor: str | None = None
    while True:
        page = client.trials(job_id, cursor=cursor, limit=1000)
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            return found


def _chosen(client: "Client", job: "JobView", number: int | None) -> "TrialView":
    if number is None:
        best = client.study(job.id).best
        if not best:
            raise NoSuchTrial(f"no trial of {job.name} has a result yet")
        return best[0]
    found = [trial for trial in every_trial(client, job.id) if trial.number == number]
    if not found:
        raise NoSuchTrial(f"{job.name} has no trial {number}; `manta tune trials {job.name}` shows them")
    return found[0]

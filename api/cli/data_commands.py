"""`manta data report`: what became of the documents of a prepared data set, as a page, as HTML or as JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.app import Commands, app
from api.cli.console import CommandError, Format, Output, show, stderr

if TYPE_CHECKING:
    from data.manifest import Manifest
    from data.report import Report
    from service.views import JobView

PREPARED = "prepared.json"
"""In a job's directory: where its data is, as ``workers.driver`` wrote it."""

data = typer.Typer(name="data", cls=Commands, no_args_is_help=True, rich_markup_mode=None, help="Look at prepared data sets.")
app.add_typer(data)


class NoDataSet(CommandError):
    """Nothing is prepared there yet, or this machine does not see it."""

    code = "data_set_not_found"
    status = 404


class WhichDataSet(CommandError):
    """More than one was prepared there."""

    code = "data_set_ambiguous"
    status = 409


@dataclass(frozen=True)
class Found:
    """A report, and how often a run goes through each cell; ``tokens`` None where no run is known."""

    report: "Report"
    manifest: "Manifest"
    tokens: int | None

    @property
    def epochs(self) -> dict[str, float] | None:
        from data.report import epochs

        return None if self.tokens is None else epochs(self.manifest, self.tokens)


@data.command()
def report(
    context: typer.Context,
    where: Annotated[
        str, typer.Argument(metavar="DIR_OR_JOB", help="A prepared data set, the directory of a run or of a job, or a job.")
    ],
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML file that needs nothing else.")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="A run of so many tokens: say how often it repeats each cell.")
    ] = None,
    output: Output = Format.TEXT,
) -> None:
    """Show what each step dropped and why, shares, lengths and the tokenizer's figures. Runs where the data lies."""
    from api.cli.report_html import document
    from api.cli.report_page import page
    from data.inputs import Inputs
    from data.manifest import Manifest
    from data.report import Report

    directory, of_run = _locate(context.obj, where)
    found = Found(Report.read(directory), Manifest.read(directory), tokens or of_run)
    if html is not None:
        try:
            html.write_text(document(found.report, found.tokens, found.epochs), encoding="utf-8")
        except OSError as error:
            raise CommandError(f"{html} cannot be written: {error.strerror}") from error
        stderr().print(f"{html} is written.", markup=False)
    run = {} if found.tokens is None else {"run": {"tokens": found.tokens, "epochs": found.epochs}}
    text = None if html is not None else page(found.report, found.tokens, found.epochs)
    inputs = [] if output is Format.TEXT else Inputs.read(directory).model_dump(mode="json")["files"]
    show({**found.report.model_dump(mode="json"), "inputs": inputs, **run}, text, output)


def _locate(url: str | None, where: str) -> tuple[Path, int | None]:
    """The data set, and the tokens of the run that it was made for, where that is known.

    Raises NoDataSet, WhichDataSet, NoSuchJob.
    """
    if (path := Path(where).expanduser()).is_dir():
        try:
            return _in_directory(path.absolute()), None
        except NoDataSet:
            if "/" in where or not _is_a_job(url, where):
                raise
    from api.cli.connect import connect, find
    from api.settings import Settings
    from service.jobs import job_directory

    job = find(connect(url), where)
    directory = job_directory(Settings.read().home, job.id)
    if not directory.is_dir():
        raise NoDataSet(f"this machine does not see {directory}; run `manta data report` where the job's storage is")
    try:
        return _in_directory(directory), _tokens_of(job)
    except NoDataSet as error:
        raise _not_yet(job) or error from error


def _is_a_job(url: str | None, reference: str) -> bool:
    """A folder may have the name of a job: of the job's sources, say."""
    from api.cli.connect import NoSuchJob, connect, find
    from api.client import ServiceUnavailable

    try:
        find(connect(url), reference)
    except (NoSuchJob, ServiceUnavailable):
        return False
    return True


def _not_yet(job: "JobView") -> NoDataSet | None:
    """Why a job has no data set, as far as its state says."""
    if job.state == "succeeded":
        return None
    if job.state in ("failed", "cancelled"):
        return NoDataSet(f"{job.name} {job.state} before its data set was whole; `manta show {job.name}` says more")
    return NoDataSet(f"{job.name} is {job.state}: its report comes with its data set; `manta watch {job.name}` follows it")


def _tokens_of(job: "JobView") -> int | None:
    from service.spec import TrainJob
    from service.validation import parse_spec

    spec = parse_spec(job.spec)
    return spec.curriculum.tokens_before(spec.total_steps) if isinstance(spec, TrainJob) else None


def _in_directory(path: Path) -> Path:
    """The data set at ``path``; or the one that a job's record there names; or the only one below it."""
    from data.manifest import FILE_NAME, TOKENIZER_NAME

    if (path / FILE_NAME).is_file() and (path / TOKENIZER_NAME).is_file():
        return path
    try:
        return Path(json.loads((path / PREPARED).read_text())["path"])
    except (OSError, ValueError, KeyError, TypeError):
        found = sorted(each.parent for pattern in ("", "prepared/") for each in path.glob(f"{pattern}*/{FILE_NAME}"))
    found = [each for each in found if (each / TOKENIZER_NAME).is_file()]
    if len(found) > 1:
        raise WhichDataSet(f"{len(found)} data sets lie in {path}; name one, such as {found[0]}")
    if not found:
        raise NoDataSet(f"no data set is prepared in {path}")
    return found[0]

"""`manta export`: a checkpoint of a job, or of a run without a service, as a directory that `from_pretrained` loads.

The weights are converted by a process of its own, so that the command line stays free of torch.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.app import app
from api.cli.console import CommandError, Format, Output, show, stderr

if TYPE_CHECKING:
    from api.client import Client

CHECKPOINTS = "checkpoints"
PREPARED = "prepared.json"
"""In a job's directory: where its data is, as ``workers.driver`` wrote it."""
MANIFEST = "manifest.json"
"""Written last, of a checkpoint and of a data set alike."""


class ExportFormat(StrEnum):
    HF = "hf"


class DType(StrEnum):
    FP32 = "fp32"
    BF16 = "bf16"


class NoCheckpoint(CommandError):
    """There is no such checkpoint, or none that this machine sees."""

    code = "checkpoint_not_found"
    status = 404


class NotATrainingJob(CommandError):
    """The job trains no model."""

    code = "no_model"
    status = 409


class Incomplete(CommandError):
    """Something that a run without a service does not keep must be given."""

    code = "argument_missing"


class ExportFailed(CommandError):
    """What the conversion said; ``code`` and ``status`` are its own."""

    def __init__(self, code: str, status: int, detail: str, pointer: str | None = None) -> None:
        super().__init__(detail, pointer=pointer)
        self.code, self.status = code, status  # type: ignore[misc]


@dataclass(frozen=True)
class Source:
    """What is exported; ``spec`` is the job's, resolved."""

    name: str
    checkpoint: Path
    spec: dict[str, Any]
    tokenizer: Path


@app.command()
def export(
    context: typer.Context,
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job, or the directory of a run or of one checkpoint.")],
    step: Annotated[int | None, typer.Option(help="The checkpoint of this step; without it, the newest.")] = None,
    to: Annotated[Path | None, typer.Option(help="Directory to write (default: NAME-step-N here).")] = None,
    format: Annotated[ExportFormat, typer.Option(help="hf: Hugging Face, safetensors.")] = ExportFormat.HF,
    dtype: Annotated[DType, typer.Option(help="Type of the weights that are written.")] = DType.FP32,
    spec: Annotated[Path | None, typer.Option(help="The job file, where JOB is a directory.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.model, where it cannot be found.")] = None,
    output: Output = Format.TEXT,
) -> None:
    """Write a checkpoint as a model for Hugging Face's libraries. Runs where the checkpoint lies."""
    if (path := Path(job).expanduser()).is_dir():
        source = of_directory(path, step, spec, tokenizer)
    else:
        from api.cli.connect import connect

        source = of_job(connect(context.obj), job, step, tokenizer)
    target = to or Path(f"{source.name}-{source.checkpoint.name}")
    with stderr().status(f"Exporting {source.checkpoint.name} of {source.name}"):
        made = convert(source, target.absolute(), dtype)
    show(made, "\n".join(_text(made)), output)


def of_job(client: "Client", reference: str, step: int | None, tokenizer: Path | None) -> Source:
    """Raises NoSuchJob, NotATrainingJob, NoCheckpoint, Incomplete."""
    from api.cli.connect import find

    job = find(client, reference)
    if job.kind != "train":
        raise NotATrainingJob(f"{job.name} is a job of kind {job.kind}; it has no checkpoints")
    kept = {each.step: Path(each.path) for each in client.checkpoints(job.id) if each.state == "committed"}
    checkpoint = kept[_chosen(kept, step, job.name)]
    if not checkpoint.is_dir():
        raise NoCheckpoint(f"this machine does not see {checkpoint}; run `manta export` where the job's storage is")
    return Source(job.name, checkpoint, job.spec, tokenizer or _tokenizer_of(checkpoint.parent.parent))


def of_directory(path: Path, step: int | None, spec: Path | None, tokenizer: Path | None) -> Source:
    """A run's directory (``checkpoints/`` in it), or one checkpoint's. Raises NoCheckpoint, Incomplete."""
    path = path.absolute()
    if (path / MANIFEST).is_file():
        checkpoint, run = path, path.parent.parent
        if step is not None and step not in _by_step([path]):
            raise NoCheckpoint(
                f"{path} is a checkpoint itself, not of step {step}; leave --step out, or name the run's directory"
            )
    else:
        run, kept = path, _by_step(each.parent for each in (path / CHECKPOINTS).glob(f"step-*/{MANIFEST}"))
        checkpoint = kept[_chosen(kept, step, str(path))]
    if spec is None:
        raise Incomplete(f"a directory does not say what was trained in {run}: give the job file as --spec")
    return Source(run.name, checkpoint, _resolved(spec), tokenizer or _tokenizer_of(run))


def _by_step(checkpoints: Iterable[Path]) -> dict[int, Path]:
    """Others than ``step-00000020`` (temporary ones, a user's own) are left out."""
    return {int(number): each for each in checkpoints if (number := each.name.removeprefix("step-")).isdecimal()}


def _resolved(file: Path) -> dict[str, Any]:
    """A job file, which need not say its name. Raises SpecInvalid, NotATrainingJob."""
    from api.cli import specfile
    from service.validation import parse_spec

    spec = parse_spec({"name": "run", **specfile.read(file)})
    if spec.kind != "train":
        raise NotATrainingJob(f"{file} is a job of kind {spec.kind}; it trains no model")
    return spec.model_dump(mode="json")


def _chosen(kept: dict[int, Path], step: int | None, where: str) -> int:
    if not kept:
        raise NoCheckpoint(f"{where} has no checkpoint")
    if step is not None and step not in kept:
        raise NoCheckpoint(f"{where} has no checkpoint of step {step}; it has {', '.join(map(str, sorted(kept)))}")
    return max(kept) if step is None else step


def _tokenizer_of(run: Path) -> Path:
    """The tokenizer of a run's data set."""
    from data.manifest import TOKENIZER_NAME

    try:
        return Path(json.loads((run / PREPARED).read_text())["path"]) / TOKENIZER_NAME
    except (OSError, ValueError, KeyError):
        # A directory without manifest is a data set in the making.
        found = [path.with_name(TOKENIZER_NAME) for path in (run / "prepared").glob(f"*/{MANIFEST}")]
    if len(found) == 1:
        return found[0]
    which = f"{len(found)} data sets lie in {run / 'prepared'}" if found else f"no prepared data is known in {run}"
    raise Incomplete(f"{which}: give the tokenizer.model that the run was trained with as --tokenizer")


def convert(source: Source, target: Path, dtype: DType) -> dict[str, Any]:
    """``workers.hf.export`` in a process of its own; what it says it made. Raises ExportFailed."""
    with tempfile.TemporaryDirectory(prefix="manta-export-") as scratch:
        spec = Path(scratch) / "job.json"
        spec.write_text(json.dumps(source.spec))
        paths = ["--spec", str(spec), "--tokenizer", str(source.tokenizer), "--output", str(target)]
        done = _run([str(source.checkpoint), *paths, "--dtype", dtype.value])
    try:
        said: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise ExportFailed("export_failed", 500, f"the conversion ended with status {done.returncode}: {tail}") from None
    if done.returncode:
        raise ExportFailed(said["code"], said["status"], said["detail"], said["pointer"])
    return said


def _run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # -P: what lies in the user's directory is not taken for a module.
    command = [sys.executable, "-P", "-m", "workers.hf.export", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _text(made: dict[str, Any]) -> list[str]:
    from api.cli.text import count, size

    what = f"{made['family']}, {count(made['parameters'])} parameters in {made['dtype']}, {size(made['bytes'])}"
    return [f"[bold]{made['output']}[/] is step {made['step']}: {what}.", *(f"[dim]note[/]  {note}" for note in made["notes"])]

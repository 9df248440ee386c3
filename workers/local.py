"""Train a job on bare processes, without Ray or a service: ``torchrun --nproc-per-node 2 -m workers.local SPEC [--out DIR]``.

The same seed and number of workers give the same losses as through Ray. A second run with the same ``--out`` goes on from
the newest checkpoint there.
"""

import argparse
import os
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import ValidationError
from torch import distributed as dist

from data.dataset import PackedDataset
from data.errors import MantaError
from data.executors import SerialExecutor
from data.prepare import Progress, prepare
from workers.allocator import keep_freed_memory
from workers.attempt import Phase
from workers.checkpoint import CheckpointStore
from workers.hf.directory import require_model
from workers.loop import Outcome, train
from workers.mesh import Membership
from workers.plan import plan
from workers.reporter import LocalReporter, NullReporter, Reports
from workers.spec import TrainSpec

PREPARATION_TIMEOUT = timedelta(hours=24)


class JobUnreadable(MantaError):
    """The job file is missing, no YAML or JSON, or not a mapping."""

    code: ClassVar[str] = "spec_invalid"
    status: ClassVar[int] = 422


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m workers.local", description=__doc__.split("\n")[0])
    parser.add_argument("spec", type=Path, help="a train job's YAML or JSON file")
    parser.add_argument(
        "--out", type=Path, default=None, help="checkpoints, metrics.jsonl and prepared data (default: runs/NAME)"
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    rank = int(os.environ.get("RANK", "0"))
    try:
        name, spec = read_job(arguments.spec)
        if problems := plan(spec).problems:
            wrong = [f"{each.code}: {each.detail} ({each.pointer})" for each in problems]
            print("\n".join([f"{arguments.spec} cannot run", *wrong]), file=sys.stderr)
            return 2
        out = arguments.out or Path("runs") / name
        out.mkdir(parents=True, exist_ok=True)
        outcome = run(spec, out, LocalReporter(metrics=out / "metrics.jsonl") if rank == 0 else NullReporter())
    except ValidationError as error:
        wrong = ["/".join(["", *map(str, each["loc"])]) + ": " + each["msg"] for each in error.errors()]
        print("\n".join([f"spec_invalid: {arguments.spec}", *wrong]), file=sys.stderr)
        return 2
    except JobUnreadable as error:
        print(f"{error.code}: {error.detail}", file=sys.stderr)
        return 2
    except MantaError as error:
        print(f"{error.code}: {error.detail}" + (f" ({error.pointer})" if error.pointer else ""), file=sys.stderr)
        return 1
    return 0 if outcome.kind == "succeeded" else 1


def read_job(path: Path) -> tuple[str, TrainSpec]:
    """A job file's name (the file's own if it says none) and training spec. Raises JobUnreadable and ValidationError."""
    try:
        document: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise JobUnreadable(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise JobUnreadable(f"{path} is no YAML: {error}") from error
    if not isinstance(document, dict):
        raise JobUnreadable(f"{path} holds no mapping of the job's parts (data_pipeline, model, training, ...)")
    kind = document.pop("kind", "train")
    if kind != "train":
        raise MantaError(f"{path} is a job of kind {kind}; only train jobs run without a service", pointer="/kind")
    return document.pop("name", path.stem), TrainSpec.model_validate(document)


def run(spec: TrainSpec, out: Path, reporter: Reports) -> Outcome:
    """This process's part: rank 0 prepares the data, the others wait; then all train."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    generation = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    # torchrun counts from 0 at each start; the time makes a later start's checkpoints the newer ones.
    attempt = int(time.time() * 1000)
    if world_size == 1:
        membership, prepared = Membership(generation=generation), _prepare(spec, out, reporter)
    else:
        # torchrun's own store already listens on MASTER_PORT; through it rank 0 says what the others need to know.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        meeting = dist.TCPStore(address, port, is_master=False, timeout=PREPARATION_TIMEOUT)  # type: ignore[attr-defined]
        key = f"manta-{generation}"
        if rank == 0:
            prepared = _prepare(spec, out, reporter)
            meeting.set(key, f"{_free_port()} {attempt} {prepared}")
        master_port, said, path = meeting.get(key).decode().split(" ", 2)
        attempt, prepared = int(said), Path(path)
        membership = Membership(
            generation=generation,
            rank=rank,
            world_size=world_size,
            local_rank=int(os.environ["LOCAL_RANK"]),
            master_address=address,
            master_port=int(master_port),
        )
    keep, asynchronous = spec.checkpoint.keep_last, spec.checkpoint.asynchronous
    checkpoints = CheckpointStore(out / "checkpoints", keep, asynchronous, attempt=attempt)
    try:
        return train(spec, membership, PackedDataset.open(prepared), checkpoints, reporter)
    finally:
        checkpoints.close()


def _prepare(spec: TrainSpec, out: Path, reporter: Reports) -> Path:
    def show(p: Progress) -> None:
        if p.reused or p.done == p.total:
            reporter.phase(Phase(p.phase), p.done, p.total, p.unit, p.reused)

    if spec.init_from is not None and not (out / "checkpoints").exists():
        require_model(Path(spec.init_from).expanduser(), spec.model)  # before the data costs anything
    return prepare(spec.data_pipeline, spec.tokenizer, (out / "prepared").absolute(), SerialExecutor(), show).path


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())

"""One rank of an attempt: what runs inside a Ray Train worker process, around the train loop.

It knows its place in the worker group, opens data, checkpoints, log and reporter, trains, and leaves a note in the
attempt's directory when it fails: the driver reads there who failed, where and at which step, whatever becomes of the
process.
"""

import json
import logging
import os
import re
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.errors import MantaError
from workers.allocator import keep_freed_memory
from workers.attempt import Order
from workers.logs import log_path, logged_to, tail
from workers.reporter import Reporter
from workers.spec import TrainSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where this process stands: handed to it by the driver before it trains."""

    generation: int
    rank: int
    world_size: int
    local_rank: int
    master_address: str
    master_port: int
    node: str


_place: Place | None = None


def take_place(place: Place) -> None:
    """Called before the thread that trains is started."""
    global _place
    _place = place
    keep_freed_memory()


def attempt_dir(order: Order) -> Path:
    return order.job_dir / "attempts" / str(order.attempt)


@dataclass(frozen=True)
class Progress:
    """Steps of one rank in one generation, with the Unix time at which each was done."""

    generation: int
    rank: int
    first_step: int
    first_time: float
    last_step: int
    last_time: float


PROGRESS_BYTES = 256
"""A line of progress is shorter; what it is filled up with is white space to JSON."""


def progress_path(order: Order, rank: int) -> Path:
    return attempt_dir(order) / f"progress-{rank}.json"


def read_progress(path: Path) -> Progress | None:
    """What the rank wrote last; None before its first step."""
    try:
        return Progress(**json.loads(path.read_text()))
    except (FileNotFoundError, json.JSONDecodeError):  # not there, or made a moment ago and still empty
        return None


class RankReporter(Reporter):
    """Notes each step in a file as well, where the driver sees it while the service is away."""

    def __init__(self, order: Order, place: Place) -> None:
        super().__init__(order, place.generation, place.rank, spool_dir(order))
        self._place = place
        self._path = progress_path(order, place.rank)
        self._first: tuple[int, float] | None = None
        self.last_step: int | None = None

    def heartbeat(self, step: int) -> None:
        now = self._clock()
        self._first = self._first or (step, now)
        self.last_step = step
        progress = Progress(self._place.generation, self._place.rank, *self._first, step, now)
        with suppress(OSError):  # a full disk must not end a step
            # In place: a new file renamed over the old one would have the disk write and discard at every step. Closed each
            # time: that is when a shared file system shows it to the driver's machine.
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.pwrite(file, json.dumps(asdict(progress)).encode().ljust(PROGRESS_BYTES), 0)
            finally:
                os.close(file)
        super().heartbeat(step)


def spool_dir(order: Order) -> Path:
    return attempt_dir(order) / "spool"


@dataclass(frozen=True)
class FailureNote:
    """A worker's exception, as the user is to see it. ``retry``: a new worker group may fare better."""

    generation: int
    rank: int
    node: str
    host: str
    pid: int
    step: int | None
    code: str
    detail: str
    pointer: str | None
    retry: bool
    log_tail: list[str]
    time: float


def read_notes(order: Order, generation: int) -> list[FailureNote]:
    """What the ranks of ``generation`` failed of, the first to fail first."""
    paths = attempt_dir(order).glob(f"failure-{generation}-*.json")
    return sorted((FailureNote(**json.loads(path.read_text())) for path in paths), key=lambda note: note.time)


def run_rank(config: dict[str, Any]) -> dict[str, Any]:
    """The function that Ray Train runs: ``config`` holds the order and the prepared data; returns kind and step."""
    place = _place
    assert place is not None, "the driver gives every worker its place first"
    order = Order.model_validate(config["order"])
    with logged_to(log_path(order.job_dir, order.attempt, place.rank)):
        reporter = RankReporter(order, place)
        reporter.worker("started", node=place.node)
        try:
            return _train(order, Path(config["prepared"]), place, reporter)
        except Exception as error:
            _say(error)
            _leave_note(order, place, reporter.last_step, error)
            raise
        finally:
            reporter.worker("ended", node=place.node)
            reporter.close(timeout=2.0)


def _train(order: Order, prepared: Path, place: Place, reporter: RankReporter) -> dict[str, Any]:
    import torch

    from data.dataset import PackedDataset
    from workers.checkpoint import CheckpointStore
    from workers.loop import train
    from workers.mesh import Membership

    spec = TrainSpec.model_validate(order.spec)
    torch.set_num_threads(spec.gpu_config.cpus_per_worker)
    store = CheckpointStore(
        order.job_dir / "checkpoints",
        spec.checkpoint.keep_last,
        spec.checkpoint.asynchronous,
        _checkpoint_reports(reporter),
        attempt=order.attempt,
    )
    membership = Membership(
        generation=place.generation,
        rank=place.rank,
        world_size=place.world_size,
        local_rank=place.local_rank,
        master_address=place.master_address,
        master_port=place.master_port,
    )
    try:
        outcome = train(spec, membership, PackedDataset.open(prepared), store, reporter)
    finally:
        store.close()
    return {"kind": outcome.kind, "step": outcome.step}


def _checkpoint_reports(reporter: RankReporter) -> Callable[[dict[str, Any]], None]:
    def report(event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind in ("committed", "deleted"):
            reporter.checkpoint(event["step"], event["path"], event["bytes"], kind)
        else:
            reporter.event(f"checkpoint_{kind}", f"checkpoint {event['path']} is {kind}", step=event["step"])

    return report


def _say(error: Exception) -> None:
    """Into the log: one line where the user can mend it, else where it comes from."""
    if isinstance(error, MantaError):
        logger.error("%s: %s", error.code, error.detail)
    else:
        traceback.print_exc()


def _leave_note(order: Order, place: Place, step: int | None, error: Exception) -> None:
    known = isinstance(error, MantaError)
    note = FailureNote(
        generation=place.generation,
        rank=place.rank,
        node=place.node,
        host=socket.gethostname(),
        pid=os.getpid(),
        step=step,
        code=error.code if isinstance(error, MantaError) else "worker_failed",
        detail=error.detail if isinstance(error, MantaError) else f"{type(error).__name__}: {error}",
        pointer=error.pointer if isinstance(error, MantaError) else None,
        retry=not known and _is_lost_peer(error),
        log_tail=tail(log_path(order.job_dir, order.attempt, place.rank)),
        time=time.time(),
    )
    with suppress(OSError):  # the disk may be what failed; the driver then has the exception from Ray alone
        _put(attempt_dir(order) / f"failure-{place.generation}-{place.rank}.json", asdict(note))


def _put(path: Path, value: dict[str, Any]) -> None:
    """Seen by the driver whole, or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    temporary.rename(path)


_LOST_PEER = re.compile(r"\[[^]]*\bgloo/[^]]*\] |Gloo |Application timeout caused pair closure|NCCL (error|communicator)")


def _is_lost_peer(error: Exception) -> bool:
    """A collective that broke off: the fault is another rank's, or the network's.

    gloo raises plain RuntimeErrors that begin with where in gloo they come from (``[.../gloo/transport/tcp/pair.cc:534]
    Connection closed by peer``); NCCL's are DistErrors.
    """
    from torch.distributed import DistError

    return isinstance(error, DistError) or (type(error) is RuntimeError and _LOST_PEER.match(str(error)) is not None)

"""The entry point of an attempt on the cluster: ``python -m workers.driver ORDER_FILE``.

Data, tokenizer, shards, then the worker group. Exit code 0 when the attempt ended in order (paused and cancelled are in
order); its outcome is its last report.
"""

import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import ray

from data.errors import MantaError, ShardError
from data.files import write_atomically
from data.manifest import Manifest, require_rows
from data.spec import DataSpec, TokenizerSpec
from workers.attempt import DRIVER_RANK, Desired, Order, Phase
from workers.early import start_workers, worker_resources
from workers.logs import log_path, logged_to, tail
from workers.reporter import Reporter, Reports
from workers.spec import TrainSpec

if TYPE_CHECKING:
    from data.prepare import OnProgress, Progress

logger = logging.getLogger(__name__)

DELIVERY_SECONDS = 600.0
"""How long an ended attempt waits for a service that is away, to deliver its last words."""

PREPARED = "prepared.json"
"""In the job's directory: ``{path, hash}`` of its data set, written when that is whole."""


class Stopped(SystemExit):
    """The attempt is to end now: ``outcome`` is paused or cancelled. No ``Exception``, so that nothing retries it."""

    def __init__(self, outcome: str) -> None:
        super().__init__(0)
        self.outcome = outcome


def main(arguments: Sequence[str] | None = None) -> int:
    (path,) = sys.argv[1:] if arguments is None else arguments
    order = Order.model_validate_json(Path(path).read_text())
    with logged_to(log_path(order.job_dir, order.attempt, DRIVER_RANK)):
        signal.signal(signal.SIGTERM, _on_sigterm)
        return _attempt(order)


def _attempt(order: Order) -> int:
    from workers.rank import attempt_dir, spool_dir

    attempt_dir(order).mkdir(parents=True, exist_ok=True)
    reporter = Reporter(order, 0, DRIVER_RANK, spool_dir(order))
    outcome, code = "failed", 1
    try:
        outcome, code = _run(order, reporter), 0
    except Stopped as stopped:
        outcome, code = stopped.outcome, 0
    except (KeyboardInterrupt, SystemExit):  # what Ray makes of a signal that arrives while it waits in C++
        outcome, code = "cancelled", 0
    except MantaError as error:
        _report_failure(order, reporter, error)
    except Exception as error:
        logger.exception("the driver failed")
        reporter.failure("driver_failed", f"{type(error).__name__}: {error}", **_here(order))
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending already; let it have its last word
        reporter.adopt()
        reporter.ended(outcome)
        reporter.close(DELIVERY_SECONDS)
    return code


def _run(order: Order, reporter: Reporter) -> str:
    spec = TrainSpec.model_validate(order.spec) if order.kind == "train" else None
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)  # set by Ray's job supervisor
    signal.signal(signal.SIGTERM, _on_sigterm)  # ray.init installs its own
    reporter.worker("started", node=ray.get_runtime_context().get_node_id())
    prepared = _prepare(order, spec, reporter)
    if spec is None:
        return "succeeded"
    # The workers start while this process imports Ray Train.
    early = start_workers(spec.world_size, worker_resources(spec))
    from workers.group import run_group

    return run_group(order, spec, prepared, reporter, early).kind


def _prepare(order: Order, spec: TrainSpec | None, reporter: Reports) -> Path:
    """The data set of the job: what an earlier attempt prepared, whatever has become of the sources since."""

    def stop_if_asked() -> None:
        if reporter.stale or reporter.desired is Desired.CANCELLED:
            raise Stopped("cancelled")
        if reporter.desired is Desired.PAUSED:
            raise Stopped("paused")

    waited = False

    def on_progress(progress: "Progress") -> None:
        nonlocal waited
        reporter.phase(Phase(progress.phase), progress.done, progress.total, progress.unit, progress.reused)
        if progress.waiting and not waited:
            reporter.event("waiting_for_data", "another job prepares the same data; this one waits, and will use it")
            waited = True
        stop_if_asked()

    path, manifest = _prepared_before(order, on_progress) or _prepare_now(order, spec, on_progress, stop_if_asked)
    if spec is not None:
        require_rows(manifest, spec.training.global_batch_size)
    return path


def _prepare_now(
    order: Order, spec: TrainSpec | None, on_progress: "OnProgress", pulse: Callable[[], None]
) -> tuple[Path, Manifest]:
    from data.prepare import prepare
    from data.ray_executor import RayDataExecutor
    from workers.hf.directory import require_model

    if spec is not None and spec.init_from is not None:
        require_model(Path(spec.init_from).expanduser(), spec.model)  # before the data costs anything
    data = spec.data_pipeline if spec is not None else DataSpec.model_validate(order.spec["data_pipeline"])
    tokenizer = spec.tokenizer if spec is not None else TokenizerSpec.model_validate(order.spec["tokenizer"])
    prepared = prepare(data, tokenizer, order.prepared_dir, RayDataExecutor(pulse), on_progress)
    record = {"path": str(prepared.path), "hash": prepared.manifest.hash}
    write_atomically(order.job_dir / PREPARED, json.dumps(record).encode())
    return prepared.path, prepared.manifest


def _prepared_before(order: Order, on_progress: "OnProgress") -> tuple[Path, Manifest] | None:
    """What the job's record names, if it is still there and still the same."""
    from data.dataset import PackedDataset
    from data.prepare import Progress

    try:
        record = json.loads((order.job_dir / PREPARED).read_text())
        manifest = PackedDataset.open(Path(record["path"])).manifest
    except FileNotFoundError:
        return None
    except ShardError as error:
        logger.warning("the data is prepared again: %s", error.detail)
        return None
    if manifest.hash != record["hash"]:
        return None
    documents = manifest.documents("train") + manifest.documents("held_out")
    for phase, done, unit in (
        (Phase.DOCUMENTS, manifest.input_bytes, "bytes"),
        (Phase.TOKENIZER, 1, "model"),
        (Phase.SHARDS, documents, "documents"),
    ):
        on_progress(Progress(phase.value, done, done, unit, reused=True))
    return Path(record["path"]), manifest


def _report_failure(order: Order, reporter: Reporter, error: MantaError) -> None:
    from workers.group import WorkersFailed

    logger.error("%s: %s", error.code, error.detail)
    where = {**_here(order), **error.report} if isinstance(error, WorkersFailed) else _here(order)
    code = error.failure_code if isinstance(error, WorkersFailed) else error.code
    reporter.failure(code, error.detail, pointer=error.pointer, **where)


def _here(order: Order) -> dict[str, Any]:
    log = tail(log_path(order.job_dir, order.attempt, DRIVER_RANK))
    return {"rank": DRIVER_RANK, "node": socket.gethostname(), "log_tail": log}


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise Stopped("cancelled")


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Disconnecting from Ray and taking the interpreter apart is a second of nothing: the workers are gone already, and
    # whatever else belongs to the job goes when its driver does.
    os._exit(exit_code)

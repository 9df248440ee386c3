"""The entry point of an attempt on the cluster: ``python -m workers.driver ORDER_FILE``.

Data, tokenizer, shards, then the worker group. Exit code 0 when the attempt ended in order (paused and cancelled are in
order); its outcome is its last report. ``tuning.driver`` is another entry point round the same ``carry_out``.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import ray

from data.errors import MantaError
from data.manifest import Manifest, require_rows
from data.spec import DataSpec, TokenizerSpec
from workers.attempt import DRIVER_RANK, DataSummary, Order
from workers.early import start_workers, worker_resources
from workers.logs import log_path, logged_to, tail
from workers.preparation import Stopped, prepared_data
from workers.reporter import Reporter, Reports
from workers.spec import TrainSpec

logger = logging.getLogger(__name__)

DELIVERY_SECONDS = 600.0
"""How long an ended attempt waits for a service that is away, to deliver its last words."""

Run = Callable[[Order, Reporter], str]
"""What an attempt of some kind does, on a driver of the cluster. Returns its outcome."""


def main(arguments: Sequence[str] | None = None) -> int:
    return carry_out(sys.argv[1:] if arguments is None else arguments, _run)


def carry_out(arguments: Sequence[str], run: Run) -> int:
    """Do what the order says whose file is the only argument, and report how it ends. Returns the exit code."""
    (path,) = arguments
    order = Order.model_validate_json(Path(path).read_text())
    with logged_to(log_path(order.job_dir, order.attempt, DRIVER_RANK)):
        signal.signal(signal.SIGTERM, _on_sigterm)
        return _attempt(order, run)


def _attempt(order: Order, run: Run) -> int:
    from workers.rank import attempt_dir, spool_dir

    attempt_dir(order).mkdir(parents=True, exist_ok=True)
    reporter = Reporter(order, 0, DRIVER_RANK, spool_dir(order))
    outcome, code = "failed", 1
    try:
        _join_cluster(reporter)
        outcome, code = run(order, reporter), 0
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


def _join_cluster(reporter: Reporter) -> None:
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)  # set by Ray's job supervisor
    signal.signal(signal.SIGTERM, _on_sigterm)  # ray.init installs its own
    reporter.worker("started", node=ray.get_runtime_context().get_node_id())


def _run(order: Order, reporter: Reporter) -> str:
    spec = TrainSpec.model_validate(order.spec) if order.kind == "train" else None
    prepared, manifest = _prepare(order, spec, reporter)
    if spec is None:
        reporter.result(
            DataSummary(
                path=str(prepared),
                hash=manifest.hash,
                documents=manifest.documents("train") + manifest.documents("held_out"),
                rows=manifest.rows("train"),
                tokens=manifest.tokens("train"),
            )
        )
        return "succeeded"
    # The workers start while this process imports Ray Train.
    early = start_workers(spec.world_size, worker_resources(spec))
    from workers.group import run_group

    return run_group(order, spec, prepared, reporter, early).kind


def _prepare(order: Order, spec: TrainSpec | None, reporter: Reports) -> tuple[Path, Manifest]:
    data = spec.data_pipeline if spec is not None else DataSpec.model_validate(order.spec["data_pipeline"])
    tokenizer = spec.tokenizer if spec is not None else TokenizerSpec.model_validate(order.spec["tokenizer"])
    path, manifest = prepared_data(order, data, tokenizer, reporter, before=lambda: _require_weights(spec))
    if spec is not None:
        require_rows(manifest, spec.training.global_batch_size)
    return path, manifest


def _require_weights(spec: TrainSpec | None) -> None:
    """Before the data costs anything."""
    from workers.hf.directory import require_model

    if spec is not None and spec.init_from is not None:
        require_model(Path(spec.init_from).expanduser(), spec.model)


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


def leave(code: int) -> NoReturn:
    """Disconnecting from Ray and taking the interpreter apart is a second of nothing: the workers are gone already, and
    whatever else belongs to the job goes when its driver does."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())

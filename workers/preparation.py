"""The data sets of an attempt: what an earlier attempt prepared, or prepared now."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import ShardError
from data.files import write_atomically
from data.manifest import Manifest
from data.spec import DataSpec, TokenizerSpec
from workers.attempt import Desired, Order, Phase
from workers.reporter import Reports

if TYPE_CHECKING:
    from data.prepare import OnProgress, Progress

logger = logging.getLogger(__name__)

PREPARED = "prepared.json"
"""In the job's directory: ``{path, hash}`` of its data set, written when that is whole."""


class Stopped(SystemExit):
    """The attempt is to end now: ``outcome`` is paused or cancelled. No ``Exception``, so that nothing retries it."""

    def __init__(self, outcome: str) -> None:
        super().__init__(0)
        self.outcome = outcome


def stop_if_asked(reporter: Reports) -> None:
    """
    Raises:
        Stopped: the user wants the attempt to end.
    """
    if reporter.stale or reporter.desired is Desired.CANCELLED:
        raise Stopped("cancelled")
    if reporter.desired is Desired.PAUSED:
        raise Stopped("paused")


def prepared_data(
    order: Order,
    data: DataSpec,
    tokenizer: TokenizerSpec,
    reporter: Reports,
    *,
    record: str = PREPARED,
    before: Callable[[], None] = lambda: None,
) -> tuple[Path, Manifest]:
    """A data set of the job: what an earlier attempt prepared, whatever has become of the sources since.

    Args:
        record: the file in the job's directory that says which it is.
        before: run before the data costs anything.
    """
    waited = False

    def on_progress(progress: "Progress") -> None:
        nonlocal waited
        reporter.phase(Phase(progress.phase), progress.done, progress.total, progress.unit, progress.reused)
        if progress.waiting and not waited:
            reporter.event("waiting_for_data", "another job prepares the same data; this one waits, and will use it")
            waited = True
        stop_if_asked(reporter)

    path = order.job_dir / record
    if (found := _prepared_before(path, on_progress)) is not None:
        return found
    before()
    return _prepare_now(order, data, tokenizer, path, on_progress, lambda: stop_if_asked(reporter))


def _prepare_now(
    order: Order,
    data: DataSpec,
    tokenizer: TokenizerSpec,
    record: Path,
    on_progress: "OnProgress",
    pulse: Callable[[], None],
) -> tuple[Path, Manifest]:
    from data.prepare import prepare
    from data.ray_executor import RayDataExecutor

    prepared = prepare(data, tokenizer, order.prepared_dir, RayDataExecutor(pulse), on_progress)
    said = {"path": str(prepared.path), "hash": prepared.manifest.hash}
    write_atomically(record, json.dumps(said).encode())
    return prepared.path, prepared.manifest


def _prepared_before(record: Path, on_progress: "OnProgress") -> tuple[Path, Manifest] | None:
    """What the record names, if it is still there and still the same."""
    from data.dataset import PackedDataset
    from data.prepare import Progress

    try:
        said = json.loads(record.read_text())
        manifest = PackedDataset.open(Path(said["path"])).manifest
    except FileNotFoundError:
        return None
    except ShardError as error:
        logger.warning("the data is prepared again: %s", error.detail)
        return None
    if manifest.hash != said["hash"]:
        return None
    documents = manifest.documents("train") + manifest.documents("held_out")
    for phase, done, unit in (
        (Phase.DOCUMENTS, manifest.input_bytes, "bytes"),
        (Phase.TOKENIZER, 1, "model"),
        (Phase.SHARDS, documents, "documents"),
    ):
        on_progress(Progress(phase.value, done, done, unit, reused=True))
    return Path(said["path"]), manifest

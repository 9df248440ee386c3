"""The order that one attempt carries out, and what it reports back. The service-worker contract."""

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

DRIVER_RANK = -1
"""The rank under which the attempt's driver reports."""


JOURNAL = "journal.jsonl"
"""In the directory of an attempt at a study: the study's journal, as it was when the attempt began."""


WARM = "warm-"
"""Beside it, ``warm-ID.jsonl``: the journal of an earlier study whose trials are to be known."""


class Order(BaseModel):
    """Attempt ``attempt`` at job ``job_id``: read by ``python -m workers.driver FILE`` from a file that only its user can read.

    The token is the attempt's own and is refused once a newer attempt exists.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    job_id: str
    job_name: str
    kind: str
    attempt: int
    token: str
    service_url: str
    """Base of the API, e.g. ``http://127.0.0.1:8700``."""
    spec: dict[str, Any]
    """The kind's own spec, resolved (``TrainSpec`` for ``train``)."""
    job_dir: Path
    """This job's storage: ``checkpoints/``, ``logs/``, ``attempts/N/``."""
    prepared_dir: Path
    """Prepared data sets of all jobs, by content hash."""


class Phase(StrEnum):
    DOCUMENTS = "documents"
    TOKENIZER = "tokenizer"
    SHARDS = "shards"
    TRAINING = "training"
    TRIALS = "trials"


class Desired(StrEnum):
    """What the user wants; the answer to every report carries it."""

    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"


ReportKind = Literal["phase", "metrics", "event", "worker", "heartbeat", "checkpoint", "journal", "result", "failure", "ended"]


class Report(BaseModel):
    """One report. (attempt, generation, rank, sequence) identifies it: sending it twice changes nothing.

    ``data`` by kind:

    - ``phase``: ``{phase, done, total, unit, reused}``: progress within a phase; ``reused`` when nothing had to be done.
    - ``metrics``: ``{step, values: {loss, learning_rate, grad_norm, tokens, tokens_per_second, mfu, ...}}``; of a repeated
      step the newest generation's stand. Held-out figures are metrics too (``eval_loss``). ``step_seconds``, from which
      ``tokens_per_second`` and ``mfu`` follow, is all of the time since the step before (data, reports, the copy for a
      checkpoint) but for evaluations.
    - ``event``: ``{type, message, ...}``, e.g. ``worker_died`` with ``{rank, pid, node, step, cost_seconds, lost_steps}``.
    - ``worker``: ``{pid, node, host, state: started|ended|died}`` of the reporting rank (or of ``data.rank``).
    - ``heartbeat``: ``{step}``.
    - ``checkpoint``: ``{step, path, bytes, state: committed|deleted}``.
    - ``journal``: ``{first, lines}``: lines ``first, first + 1, ...`` of a study's journal, one JSON object each.
    - ``result``: the final summary, see ``Summary``.
    - ``failure``: ``{code, detail, pointer, rank, node, step, log_tail}``.
    - ``ended``: ``{outcome: succeeded|failed|paused|cancelled}``: the attempt's last word, from the driver.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    generation: int
    rank: int
    sequence: int
    kind: ReportKind
    time: float
    """Unix seconds on the reporting machine."""
    data: dict[str, Any]


class ReportBatch(BaseModel):
    """Body of ``POST /api/v1/jobs/{job_id}/attempts/{attempt}/reports`` (bearer: the attempt's token)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reports: list[Report]


class ReportAnswer(BaseModel):
    """200: everything in the batch is stored. 409 ``stale_attempt``: a newer attempt exists or this one has ended; stop."""

    desired: Desired


class DataSummary(BaseModel):
    """The result of a job that prepares data: where it lies, and how much it is."""

    path: str
    hash: str
    documents: int
    """Kept, in training and held-out split."""
    rows: int
    """To train on."""
    tokens: int
    """To train on."""


class Summary(BaseModel):
    """What a finished training run says of itself; the demo's last screen. Losses are nats a token."""

    steps: int
    tokens: int
    train_loss: float
    eval_loss: float
    unigram_loss: float
    bigram_loss: float
    one_token_context_loss: float
    """The same model, every token seeing itself alone."""
    tokens_per_second: float
    mfu: float | None
    step_parts: dict[str, float] = {}
    """Seconds of the last step that was timed, by part, and of the wait for its data; empty if none was."""
    checkpoint: str
    samples: list[str]
    seconds: float

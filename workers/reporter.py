"""What an attempt says to the service, and what the service wants of it in answer.

A report costs the training step one append to a file and one to a queue; a background thread does the talking. While the
service is away reports gather; when it is back they go out in order. What a killed process had not sent is still in its
spool and is sent by whoever adopts it. A report is identified by (attempt, generation, rank, sequence), so sending one
twice does no harm.
"""

import json
import logging
import math
import os
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TextIO

import httpx
from pydantic import BaseModel, ValidationError

from workers.attempt import Desired, Order, Phase, Report, ReportAnswer, ReportBatch, ReportKind

logger = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # else one line a request

BATCH_REPORTS = 500
BATCH_SECONDS = 2.0
"""Each batch costs the service a transaction, on a small machine on the cores that train."""
HEARTBEAT_SECONDS = 5.0
"""With nothing to report, ranks say this often that they live: what they cost the service grows with their number. Driver and
rank 0 act on ``desired`` for all and ask for it every ``BATCH_SECONDS``."""
BACKOFF_SECONDS = (0.25, 5.0)
UNACCEPTABLE = frozenset({400, 413, 422})


class Reports(Protocol):
    """Where a driver or a rank reports to. ``Reporter``, ``LocalReporter`` and ``NullReporter`` are all there is."""

    @property
    def desired(self) -> Desired: ...
    @property
    def stale(self) -> bool: ...
    def phase(self, phase: Phase, done: int, total: int | None, unit: str, reused: bool = False) -> None: ...
    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...
    def event(self, type: str, message: str, **data: Any) -> None: ...
    def worker(self, state: str, **data: Any) -> None: ...
    def heartbeat(self, step: int) -> None: ...
    def checkpoint(self, step: int, path: str, bytes: int, state: str) -> None: ...
    def journal(self, first: int, lines: Sequence[Mapping[str, Any]]) -> None: ...
    def result(self, summary: BaseModel) -> None: ...
    def failure(self, code: str, detail: str, **data: Any) -> None: ...
    def ended(self, outcome: str) -> None: ...
    def flush(self, timeout: float) -> bool: ...
    def close(self, timeout: float = 5.0) -> bool: ...


class _Speaker(ABC):
    """The words; a subclass says where they go."""

    desired: Desired = Desired.RUNNING
    """What the user wants, as of the last answer."""
    stale: bool = False
    """A newer attempt exists or this one has ended: stop."""

    @abstractmethod
    def _report(self, kind: ReportKind, data: dict[str, Any]) -> None: ...

    def phase(self, phase: Phase, done: int, total: int | None, unit: str, reused: bool = False) -> None:
        self._report("phase", {"phase": phase.value, "done": done, "total": total, "unit": unit, "reused": reused})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """``values`` of optimizer step ``step``. JSON has no NaN: such figures are left out and counted in ``non_finite``."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        if len(finite) < len(values):
            finite["non_finite"] = float(len(values) - len(finite))
        self._report("metrics", {"step": step, "values": finite})

    def event(self, type: str, message: str, **data: Any) -> None:
        self._report("event", {"type": type, "message": message, **data})

    def worker(self, state: str, **data: Any) -> None:
        """``state``: started, ended or died; ``data`` names another process than this one, or its Ray node."""
        host = socket.gethostname()
        self._report("worker", {"pid": os.getpid(), "node": host, "host": host, "state": state, **data})

    def heartbeat(self, step: int) -> None:
        self._report("heartbeat", {"step": step})

    def checkpoint(self, step: int, path: str, bytes: int, state: str) -> None:
        self._report("checkpoint", {"step": step, "path": path, "bytes": bytes, "state": state})

    def journal(self, first: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Lines ``first, first + 1, ...`` of a study's journal."""
        self._report("journal", {"first": first, "lines": list(lines)})

    def result(self, summary: BaseModel) -> None:
        self._report("result", summary.model_dump(mode="json"))

    def failure(self, code: str, detail: str, **data: Any) -> None:
        fields: dict[str, Any] = {"pointer": None, "rank": None, "node": None, "step": None, "log_tail": []}
        self._report("failure", {"code": code, "detail": detail, **fields, **data})

    def ended(self, outcome: str) -> None:
        self._report("ended", {"outcome": outcome})

    def flush(self, timeout: float) -> bool:
        """Until everything so far has arrived; False after ``timeout`` seconds."""
        return True

    def close(self, timeout: float = 5.0) -> bool:
        """``flush``, then stop. What has not arrived stays in the spool."""
        return True


class NullReporter(_Speaker):
    """For tests and for ranks that have nothing to say."""

    def _report(self, kind: ReportKind, data: dict[str, Any]) -> None:
        pass


class LocalReporter(_Speaker):
    """For training without a service: one line a report, heartbeats left out.

    ``metrics``: a file that each step's figures are also appended to, as JSON lines of ``{time, step, values}``
    (``time``: Unix seconds).
    """

    def __init__(
        self, stream: TextIO | None = None, metrics: Path | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._stream = stream or sys.stdout
        self._metrics = metrics
        self._clock = clock

    def _report(self, kind: ReportKind, data: dict[str, Any]) -> None:
        if kind == "metrics":
            if self._metrics is not None:
                with self._metrics.open("a") as file:
                    file.write(json.dumps({"time": self._clock(), **data}) + "\n")
            figures = "  ".join(f"{name} {value:.6g}" for name, value in data["values"].items())
            print(f"step {data['step']}  {figures}", file=self._stream, flush=True)
        elif kind != "heartbeat":
            print(f"{kind} {json.dumps(data)}", file=self._stream, flush=True)


class _Answer(Enum):
    """What became of a batch."""

    DONE = "done"
    AWAY = "away"
    """To be sent again."""
    REFUSED = "refused"
    """Would be refused for ever, and hold up everything behind it."""


class Reporter(_Speaker):
    """Reports of one process (``generation``, ``rank``) to the service, with the attempt's own token.

    ``transport`` and ``clock`` are for tests, as is ``start=False``: no thread, and ``pump`` does one step of its work.
    """

    def __init__(
        self,
        order: Order,
        generation: int,
        rank: int,
        spool_dir: Path,
        *,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.time,
        start: bool = True,
    ) -> None:
        self._generation = generation
        self._rank = rank
        self._clock = clock
        self._url = f"/api/v1/jobs/{order.job_id}/attempts/{order.attempt}/reports"
        self._client = httpx.Client(
            base_url=order.service_url,
            headers={"Authorization": f"Bearer {order.token}"},
            timeout=httpx.Timeout(10.0, connect=2.0),
            transport=transport,
            trust_env=False,
        )
        self._changed = threading.Condition()
        self._queue: deque[Report] = deque()
        self._heartbeat: Report | None = None
        self._adopted: list[Path] = []
        self._closing = False
        self._flushing = False
        self._ended = False
        self._backoff = 0.0
        self._batch_reports = BATCH_REPORTS
        self._answered_at = -math.inf
        self._spool = _Spool(Path(spool_dir) / f"g{generation}-r{rank}.jsonl")
        self._queue.extend(self._spool.unsent())
        self._sequence = self._spool.last_sequence
        self._thread = threading.Thread(target=self._run, name="manta-reporter", daemon=True)
        if start:
            self._thread.start()

    def adopt(self, before_generation: int | None = None) -> int:
        """Take over what dead processes of this attempt (of older generations only) had not sent; returns how many reports."""
        with self._changed:
            found = 0
            for path in sorted(self._spool.path.parent.glob("g*-r*.jsonl")):
                if path == self._spool.path or path in self._adopted:
                    continue
                if before_generation is None or int(path.name[1:].partition("-")[0]) < before_generation:
                    reports = _Spool(path).unsent()
                    self._queue.extend(reports)
                    self._adopted.append(path)
                    found += len(reports)
            self._changed.notify_all()
        return found

    def _report(self, kind: ReportKind, data: dict[str, Any]) -> None:
        data = _encodable(data)
        with self._changed:
            if self.stale:
                return
            self._sequence += 1
            report = Report(
                generation=self._generation,
                rank=self._rank,
                sequence=self._sequence,
                kind=kind,
                time=self._clock(),
                data=data,
            )
            if kind == "heartbeat":  # only the newest means anything
                self._heartbeat = report
            else:
                self._spool.append(report)
                self._queue.append(report)
            self._changed.notify_all()

    def pump(self) -> float:
        """Send one batch, if there is one. Returns how many seconds to wait before the next call."""
        with self._changed:
            batch = [self._queue[i] for i in range(min(len(self._queue), self._batch_reports))]
            queued = len(batch)
            asks = self._rank <= 0
            early = self._answered_at + (BATCH_SECONDS if asks else HEARTBEAT_SECONDS) - self._clock()
            if not batch and (early > 0 or not (asks or self._heartbeat)):
                return min(BATCH_SECONDS, early) if early > 0 else BATCH_SECONDS
            if self._heartbeat is not None:
                batch.append(self._heartbeat)
                self._heartbeat = None
        answer = self._send(batch)
        if answer is _Answer.AWAY:
            first, last = BACKOFF_SECONDS
            self._backoff = min(max(2 * self._backoff, first), last)
            return self._backoff
        self._backoff = 0.0
        if answer is _Answer.REFUSED and queued > 1:  # one of them is to blame, or all of them are too much at once
            self._batch_reports = queued // 2
            return 0.0
        self._batch_reports = min(2 * self._batch_reports, BATCH_REPORTS)
        with self._changed:
            self._answered_at = self._clock()
            arrived = [self._queue.popleft() for _ in range(queued)]
            own = [r.sequence for r in arrived if (r.generation, r.rank) == (self._generation, self._rank)]
            if own:
                self._spool.mark_sent(own[-1])
            if self.stale:
                self._queue.clear()
            if not self._queue:
                for path in self._adopted:
                    _Spool(path).remove()
                self._adopted.clear()
            more = bool(self._queue)
            self._changed.notify_all()
        return 0.0 if more else BATCH_SECONDS

    def _send(self, batch: list[Report]) -> "_Answer":
        try:
            response = self._client.post(
                self._url,
                content=ReportBatch(reports=batch).model_dump_json(),
                headers={"Content-Type": "application/json"},
            )
        except httpx.HTTPError as error:
            logger.debug("the service is away: %s", error)
            return _Answer.AWAY
        if response.status_code == 200:
            try:
                self.desired = ReportAnswer.model_validate_json(response.content).desired
            except ValidationError:  # another program answers on this port
                return _Answer.AWAY
            return _Answer.DONE
        if response.status_code == 409:
            self.stale = True
            logger.warning("this attempt is over: %s", response.text)
            return _Answer.DONE
        if response.status_code in UNACCEPTABLE:
            logger.error("the service refused %d reports: %s", len(batch), response.text)
            return _Answer.REFUSED
        return _Answer.AWAY

    def _run(self) -> None:
        try:
            while True:
                delay = self.pump()
                with self._changed:
                    if self._closing:
                        return
                    self._changed.wait_for(lambda: self._closing or (self._flushing and self._backoff == 0.0), delay)
        finally:
            with self._changed:  # however it ends, nobody waits for it any longer
                self._ended = True
                self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._queue or self._ended, timeout)
            self._flushing = False
            return not self._queue

    def close(self, timeout: float = 5.0) -> bool:
        arrived = self.flush(timeout)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._client.close()
        self._spool.close()
        if arrived:
            self._spool.remove()
        return arrived


def _encodable(value: Any) -> Any:
    """``value`` with every lone surrogate (a log's undecodable byte, say) replaced: JSON is UTF-8 and has no place for one."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_encodable(key): _encodable(each) for key, each in value.items()}
    return [_encodable(each) for each in value] if isinstance(value, (list, tuple)) else value


class _Spool:
    """Reports on disk, one JSON line each, and beside it the sequence number of the last one that arrived."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sent_path = path.with_suffix(".sent")
        self._file: int | None = None
        self._torn = True  # whatever a killed process left: begin on a line of our own
        self.last_sequence = 0

    def append(self, report: Report) -> None:
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            line = (b"\n" if self._torn else b"") + report.model_dump_json().encode() + b"\n"
            self._torn = os.write(self._file, line) < len(line)
        except OSError as error:  # a full disk must not end training; the queue in memory still holds the report
            self._torn = True
            logger.warning("cannot spool to %s: %s", self.path, error)

    def mark_sent(self, sequence: int) -> None:
        """Everything up to ``sequence`` has arrived. Losing this mark costs a repetition and nothing else."""
        try:
            temporary = self._sent_path.with_suffix(".tmp")
            temporary.write_text(str(sequence))
            temporary.rename(self._sent_path)
        except OSError as error:
            logger.warning("cannot mark %s: %s", self._sent_path, error)

    def unsent(self) -> list[Report]:
        """What has not arrived, in order. Lines that a killed process left unfinished are passed over."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        reports = []
        for line in lines:
            try:
                reports.append(Report.model_validate_json(line))
            except ValidationError:
                continue
        self.last_sequence = max((report.sequence for report in reports), default=0)
        sent = int(self._sent_path.read_text()) if self._sent_path.exists() else 0
        return [report for report in reports if report.sequence > sent]

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._sent_path.unlink(missing_ok=True)

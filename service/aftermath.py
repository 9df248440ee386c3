"""What an attempt that is over left on disk: reports that it could not send, and the end of its log."""

import json
import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data.files import write_atomically
from service.attempts import StaleAttempt
from service.journal import read_journal, write_journal
from service.models import Job
from service.policies import Decision
from service.reports import Reports
from service.store import Store
from workers.attempt import JOURNAL, WARM, Report

logger = logging.getLogger(__name__)

TAIL_LINES = 40
TAIL_BYTES = 64 * 1024


def collect_reports(reports: Reports, job_dir: Path, job_id: str, attempt: int) -> int:
    """Store what the attempt's reporters had spooled and not sent (``attempts/N/spool/*.jsonl``), so that no figure is lost
    when the service was away at the end. Returns how many reports were found that are not marked as sent; those that were
    sent all the same are known and change nothing. What cannot be read or taken is logged and passed over."""
    found = left_behind(job_dir, attempt)
    if not found:
        return 0
    try:
        reports.ingest_left_behind(job_id, attempt, found)
    except StaleAttempt as error:
        logger.warning("job %s: reports that attempt %s left behind were not taken: %s", job_id, attempt, error)
        return 0
    return len(found)


def left_behind(job_dir: Path, attempt: int) -> list[Report]:
    """The reports that an attempt spooled and did not mark as sent."""
    found: list[Report] = []
    for path in sorted((job_dir / "attempts" / str(attempt) / "spool").glob("*.jsonl")):
        try:
            found += _unsent(path)
        except OSError as error:
            logger.warning("what attempt %s left in %s cannot be read: %s", attempt, path, error)
    return found


def _unsent(spool: Path) -> list[Report]:
    """The spool's reports above the mark that its writer keeps beside it."""
    mark = spool.with_suffix(".sent")
    said = mark.read_text(errors="replace").strip() if mark.exists() else ""
    sent = int(said) if said.isdecimal() else 0  # a crash may leave the mark empty: a repetition does no harm
    found = []
    for line in spool.read_bytes().splitlines():
        try:
            report = Report.model_validate_json(line)
        except ValidationError:
            continue  # a line that its writer's death cut short
        if report.sequence > sent:
            found.append(report)
    return found


def hand_over(store: Store, job_dir: Path, job: Job) -> None:
    """Write the journal for the driver of the job's next attempt. What its last attempt left on disk is taken first, also
    where that attempt was given up for lost: a trial that it began must not be begun again as another.

    Raises OSError when the disk is full.
    """
    with store.write() as session:
        for report in left_behind(job_dir, job.attempt):
            if report.kind == "journal":
                write_journal(session, job.id, report.data["first"], report.data["lines"])
        journals = {JOURNAL: read_journal(session, job.id)}
        for earlier in job.spec["warm_start"]:
            journals[f"{WARM}{earlier}.jsonl"] = read_journal(session, earlier)
    folder = job_dir / "attempts" / str(job.attempt + 1)
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in journals.items():
        write_atomically(folder / name, "".join(json.dumps(line) + "\n" for line in lines).encode())


def log_tail(job_dir: Path, attempt: int) -> list[str]:
    """The last lines of the attempt's driver; empty when it wrote none that can be read."""
    path = job_dir / "logs" / f"attempt-{attempt}" / "driver.log"
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL_BYTES, 0))
            return last_lines(file.read().decode("utf-8", "replace"))
    except OSError:
        return []


def last_lines(text: str) -> list[str]:
    return text.replace("\x00", "\ufffd").splitlines()[-TAIL_LINES:]


def headline(message: str) -> str:
    """The first line of what the launcher says: Ray puts the job's whole log after it."""
    return message.strip().partition("\n")[0].rstrip(":").replace("\x00", "\ufffd")


def failure(attempt: int, decision: Decision, losses: int, message: str, log: list[str]) -> dict[str, Any]:
    """A failed job's ``failure`` when its attempt did not report one."""
    said = headline(message) or "its driver ended without a last word"
    if decision.outcome == "lost":
        counted = "the job's only attempt was" if losses == 1 else f"all {losses} attempts were"
        detail = f"{counted} lost; the last: {said}"
    else:
        detail = f"attempt {attempt} failed: {said}"
    return {
        "code": decision.reason.value,
        "detail": detail,
        "pointer": None,
        "rank": None,
        "node": None,
        "step": None,
        "log_tail": log,
    }

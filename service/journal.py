"""The journals of studies. A line keeps its number for ever, so to write one twice changes nothing."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.models import JournalLine
from service.text import clean

Line = dict[str, Any]


def write_journal(session: Session, job_id: str, first: int, lines: Sequence[Line]) -> None:
    for number, line in enumerate(lines, first):
        session.merge(JournalLine(job_id=job_id, number=number, line=clean(line)))


def read_journal(session: Session, job_id: str, first: int = 0) -> list[Line]:
    """The lines from ``first`` on that follow each other without a gap."""
    at = select(JournalLine.number, JournalLine.line).where(JournalLine.job_id == job_id, JournalLine.number >= first)
    lines: list[Line] = []
    for number, line in session.execute(at.order_by(JournalLine.number)):
        if number != first + len(lines):
            break
        lines.append(line)
    return lines

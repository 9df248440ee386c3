"""Optuna's journal, kept by the service: a driver appends through its reporter and reads only what it began with.

The journal is the one record of a study. What a driver appends is on disk (in its reporter's spool) before the call returns,
so a driver may be killed at any moment, and the service be away for any time, and nothing is lost.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from workers.reporter import Reports

Line = dict[str, Any]


class KnownJournal(BaseJournalBackend):
    """What was written so far, to be read; nothing that is appended lasts."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = list(lines)

    def __len__(self) -> int:
        return len(self._lines)

    def read_logs(self, log_number_from: int) -> Iterable[Line]:
        return self._lines[log_number_from:]

    def append_logs(self, logs: list[Line]) -> None:
        self._lines += logs


class ReportedJournal(KnownJournal):
    """A study has one driver at a time, so there is one writer, and what it knows is all there is."""

    def __init__(self, lines: Sequence[Line], reporter: Reports) -> None:
        super().__init__(lines)
        self._reporter = reporter

    def append_logs(self, logs: list[Line]) -> None:
        self._reporter.journal(len(self._lines), logs)
        self._lines += json.loads(json.dumps(logs))  # as the next driver will read them


def read_lines(path: Path) -> list[Line]:
    """The journal that a driver begins with; empty where there is no such file."""
    try:
        content = path.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in content.splitlines()]

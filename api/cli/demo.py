"""`manta demo`: the whole road once, in a home of its own, and nothing left running whatever is pressed meanwhile."""

import fcntl
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from api.cli import pages
from api.cli.console import CommandError, Format, Status, stderr
from api.cli.console import show as show_value
from api.cli.feed import JobSource, Update, follow
from api.cli.signals import Stopped, StopSignals
from api.cli.text import duration
from api.cli.watch import EXIT_OF, show
from service.states import JobState
from service.views import JobView

LOCK = "demo.lock"
UNIGRAM_MARGIN = 0.15
"""The demo's model must be so much below the held-out loss of the tokens' mere frequencies ..."""
ONE_TOKEN_MARGIN = 0.05
"""... and so much below its own with one token of context: less, and it has learnt no more than pairs of tokens."""


class DemoBusy(CommandError):
    """Another demo runs in the same home."""

    code = "demo_busy"
    status = 409


class NotADemoHome(CommandError):
    """A directory that holds something else; the demo clears its home."""

    code = "not_a_demo_home"


def default_home() -> Path:
    """``~/.cache/manta/demo`` (or below ``XDG_CACHE_HOME``): kept, so that a second run finds the shards of the first."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "manta" / "demo"


def default_spec() -> Path:
    return Path(__file__).parents[2] / "examples" / "quickstart.yaml"


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold ``home`` for this demo. The lock goes with the process, however that ends. Raises DemoBusy, NotADemoHome."""
    home.mkdir(parents=True, exist_ok=True)
    if any(home.iterdir()) and not (home / LOCK).exists():
        raise NotADemoHome(f"{home} is not empty and no demo's home; give `--home` an empty or new directory")
    lock: IO[str]
    with (home / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DemoBusy(f"another demo is running in {home}; wait for it, or give `--home DIR`") from error
        yield


def clear(home: Path) -> None:
    """Begin anew, but for prepared data: jobs of earlier demos, a broken off one too, are not gone on with."""
    for name in ("jobs", "logs"):
        shutil.rmtree(home / name, ignore_errors=True)
    for path in home.glob("manta.db*"):
        path.unlink()


class PhaseTimes:
    """Where the time went, from the moments at which updates came. ``laps``: title -> seconds, None for a reused phase."""

    def __init__(self, now: float) -> None:
        self.laps: dict[str, float | None] = {}
        self._mark = now
        self._begun: set[str] = set()
        self._ended: set[str] = set()

    def lap(self, title: str, now: float) -> None:
        self.laps[title] = (self.laps.get(title) or 0.0) + now - self._mark
        self._mark = now

    def take(self, update: Update, now: float) -> None:
        for phase in update.job.progress:
            title = pages.PHASE_TITLE.get(phase.phase, phase.phase)
            if phase.phase not in self._begun:
                self._begun.add(phase.phase)
                if len(self._begun) == 1:
                    self.lap("Attempt starts", now)
                elif phase.phase == "training":
                    self.lap("Workers start", now)
            ended = phase.reused or (phase.total is not None and phase.done >= phase.total)
            if ended and phase.phase not in self._ended:
                self._ended.add(phase.phase)
                if phase.reused:
                    self.laps[title] = None
                else:
                    self.lap(title, now)


def times_line(laps: dict[str, float | None]) -> str:
    """``Documents 4.1 s · Tokenizer reused · ... · total 2 min 10 s``."""
    shown = [f"{title} {'reused' if seconds is None else duration(seconds)}" for title, seconds in laps.items()]
    return " · ".join([*shown, f"total {duration(sum(seconds or 0.0 for seconds in laps.values()))}"])


def last_screen(job: JobView, laps: dict[str, float | None], home: Path) -> RenderableType:
    """What a newcomer leaves with: the figures beside their peers, three samples, where the time went, how to go on."""
    if job.state is not JobState.SUCCEEDED or not job.result:
        failure: RenderableType = pages.failure_text(job.failure) if job.failure else Text(job.reason or "")
        log = Text(f"The service's log: {home / 'logs' / 'service.log'}", "dim")
        return Panel(Group(failure, Text(), log), title=f"{job.name}: {job.state.value}", border_style="red", box=box.ROUNDED)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    facts.add_row("checkpoint", str(job.result.get("checkpoint", "-")).replace(str(Path.home()), "~", 1))
    facts.add_row("restarts", str(job.restarts))
    facts.add_row("time", times_line(laps))
    go_on = Table.grid(padding=(0, 2))
    go_on.add_row(Text("make serve", "bold"), "Manta on this machine, with its API on loopback")
    go_on.add_row(Text("manta submit FILE --watch", "bold"), "your own job: start from examples/quickstart.yaml")
    parts = [pages.result_table(job.result), Text(), facts, Text(), pages.samples(job.result), Text(), go_on]
    return Panel(Group(*parts), title=f"{job.name}: trained", border_style="green", box=box.ROUNDED)


def shortfalls(result: dict[str, Any]) -> list[str]:
    """Why a result is not what the quickstart reaches on a working machine; empty when it is. NaN falls short."""
    found = []
    loss = result.get("eval_loss")
    for key, peer, margin in (
        ("unigram_loss", "the unigram's", UNIGRAM_MARGIN),
        ("one_token_context_loss", "that with one token of context", ONE_TOKEN_MARGIN),
    ):
        bar = result.get(key)
        if loss is None or bar is None:
            found.append(f"the held-out loss or {peer} is missing")
        elif not loss <= (1 - margin) * bar:
            found.append(f"held-out loss {loss:.3f} is not {margin:.0%} below {peer}, {bar:.3f}")
    return found


class Manta(Protocol):
    """A Manta that the demo can start and stop. ``stop`` may be called at any moment and ends whatever was started."""

    def start(self, held: Callable[[], AbstractContextManager[None]]) -> JobSource: ...
    def submit(self, spec: Path) -> JobView: ...
    def stop(self) -> None: ...


@dataclass(frozen=True)
class Stage:
    """Where the demo shows itself: a console, and a second one that records what stays on the screen."""

    console: Console
    record: Console | None = None
    output: Format = Format.TEXT

    def print(self, what: RenderableType) -> None:
        self.console.print(what)
        if self.record:
            self.record.print(what)

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """A spinner, or off a terminal a line."""
        if self.console.is_terminal:
            return self.console.status(what)
        self.console.print(what)
        return nullcontext()


def run(
    manta: Manta, spec: Path, home: Path, stage: Stage, *, bars: bool = True, clock: Callable[[], float] = time.monotonic
) -> int:
    """Start, submit, watch, stop, and show the last screen.

    Returns the exit status: the job's own, or 128 + signal; with ``bars``, FAILED for a model that has learnt too little.
    Whatever happens, ``manta.stop`` runs exactly once, after the last moment at which a signal could interrupt it.
    """
    status: int = Status.FAILED
    job: JobView | None = None
    times = PhaseTimes(clock())
    with StopSignals() as signals:
        try:
            try:
                with stage.waiting("Starting Manta on loopback: API, supervisor, local Ray cluster"):
                    source = manta.start(signals.held)
                times.lap("Manta starts", clock())
                job = manta.submit(spec)
                updates = follow(source, job.id, time.sleep)
                job = show(updates, stage.console, record=stage.record, on_update=lambda update: times.take(update, clock()))
                times.lap("Evaluation, samples", clock())
                status = EXIT_OF[job.state]
            finally:
                signals.settle()
        except Stopped as stopped:
            status, job = stopped.exit_status, None
        finally:
            with stage.waiting("Stopping what was started"):
                manta.stop()
    if job is not None:
        times.lap("Manta stops", clock())
        stage.print(last_screen(job, times.laps, home))
        if bars and status == Status.SUCCEEDED and (missed := shortfalls(job.result or {})):
            status = Status.FAILED
            stage.print(Text(f"The demo fell short: {'; '.join(missed)}.", "red"))
        show_value({"job": job, "seconds": times.laps}, None, stage.output)
    else:
        stage.console.print("Stopped. Nothing is left running.")
    return status


def main(make: Callable[[Path], Manta], *, file: Path | None, home: Path | None, record: Path | None, output: Format) -> int:
    """What the command calls. With ``-o json`` progress goes to stderr and the job, with its times, to stdout."""
    home = (home or default_home()).expanduser().absolute()
    spec = file or default_spec()
    console = stderr() if output is Format.JSON else Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    recorder = Console(record=True, file=io.StringIO(), force_terminal=True, width=110, highlight=False) if record else None
    if recorder:
        recorder.print("[bold green]$[/] make demo")
    with only_one(home):
        status = run(make(home), spec, home, Stage(console=console, record=recorder, output=output), bars=file is None)
    if recorder and record and status == Status.SUCCEEDED:
        # Without Rich's web fonts: a picture in a README fetches nothing.
        picture = re.sub(r"@font-face \{.*?\}", "", recorder.export_svg(title="Manta"), flags=re.DOTALL)
        record.write_text(re.sub(r"[ \t]+\n", "\n", picture), encoding="utf-8")
    return status

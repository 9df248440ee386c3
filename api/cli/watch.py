"""Following one job: live bars on a terminal, plain lines elsewhere. What is shown is a pure function of the updates."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from api.cli.console import Status
from api.cli.feed import Update
from api.cli.pages import PHASE_TITLE, done_of, phases_table, speed_of, state_text
from api.cli.text import clock, duration
from service.spec import JOB_SPEC
from service.states import FINAL, JobState
from service.views import EventView, JobView, PhaseView
from workers.spec import TrainSpec

EXIT_OF = {JobState.SUCCEEDED: Status.SUCCEEDED, JobState.CANCELLED: Status.CANCELLED, JobState.FAILED: Status.FAILED}
"""The exit status of a job that has ended."""

BAD_NEWS = ("died", "lost", "failed", "torn", "error")


class Screen:
    """What is known of a job so far. ``take`` returns the lines that stay; ``render`` is the part that moves."""

    def __init__(self) -> None:
        self.job: JobView | None = None
        self.away = False
        self._figures: dict[str, float] = {}
        self._workers: int | None = None

    def take(self, update: Update) -> list[Text]:
        lines: list[Text] = []
        if self.job is None:
            self._workers = worker_count(update.job)
        if update.away != self.away:
            lines.append(
                Text("the service does not answer; waiting for it" if update.away else "the service is back", "yellow")
            )
        self.away = update.away
        lines.extend(event_line(event) for event in update.events)
        for metric in update.metrics:
            self._figures |= metric.values
        self.job = update.job
        return lines

    def figures(self) -> str:
        """``loss 3.2104   held out 3.3001   5,321 tokens/s   MFU 12.3%`` of the newest step."""
        shown = (
            ("loss", "loss {:.4f}"),
            ("eval_loss", "held out {:.4f}"),
            ("tokens_per_second", "{:,.0f} tokens/s"),
            ("mfu", "MFU {:.1%}"),
        )
        return "   ".join(form.format(self._figures[key]) for key, form in shown if key in self._figures)

    def render(self) -> RenderableType:
        if self.job is None:
            return Text("")
        head = Text.assemble((self.job.name, "bold"), "  ", state_text(self.job))
        if self.job.why_pending:
            head.append(f"  waits: {self.job.why_pending}", "yellow")
        if self.job.state is JobState.PAUSED:
            head.append(f"  `manta resume {self.job.name}` goes on", "dim")
        parts: list[RenderableType] = [head, phases_table(self.job.progress)]
        if self._figures:
            restarted = f"   {self.job.restarts} restart{'' if self.job.restarts == 1 else 's'}" if self.job.restarts else ""
            on = f"on {self._workers} worker{'' if self._workers == 1 else 's'}" if self._workers else ""
            parts.append(Text(f"  {on}   {self.figures()}{restarted}", "cyan"))
        return Group(*parts)


def event_line(event: EventView) -> Text:
    """One line that stays: when, and what, in red or green where it matters."""
    to = str(event.data.get("to", ""))  # of a move between states
    bad = to == "failed" or any(word in event.type for word in BAD_NEWS)
    style = "red" if bad else "green" if event.type == "training_resumed" or to == "succeeded" else "dim"
    return Text(f"{clock(event.at)}  {event.message}", style)


def as_lines(update: Update, before: JobView | None = None) -> list[dict[str, Any]]:
    """An update for programs: ``{"event": ...}``, ``{"metrics": ...}``, then ``{"job": ...}``, each in the API's shape.

    The job only if it is no longer as it was ``before``.
    """
    lines: list[dict[str, Any]] = [{"event": event.model_dump(mode="json")} for event in update.events]
    lines += [{"metrics": metric.model_dump(mode="json")} for metric in update.metrics]
    return lines if update.job == before else [*lines, {"job": update.job.model_dump(mode="json")}]


def worker_count(job: JobView) -> int | None:
    """How many workers the job's spec asks for; None for a kind that has none."""
    spec = JOB_SPEC.validate_python(job.spec)
    return spec.world_size if isinstance(spec, TrainSpec) else None


class PlainLines:
    """The same off a terminal: a line where a phase begins, at every tenth of it and at its end; last, how the job ended.

    No clock is read.
    """

    def __init__(self) -> None:
        self._said: dict[str, int] = {}
        self._state: JobState | None = None

    def take(self, screen: Screen) -> list[str]:
        job = screen.job
        if job is None:
            return []
        state: list[str] = []
        if job.state is not self._state:
            why = f": {job.why_pending}" if job.why_pending else ""
            state.append(f"{job.name} is {job.state.value}{why}")
            self._state = job.state
        phases: list[str] = []
        for phase in job.progress:
            tenth = 10 if phase.reused else 10 * phase.done // phase.total if phase.total else 0
            if tenth <= self._said.get(phase.phase, -1):
                continue
            self._said[phase.phase] = tenth
            phases.append(self._line(phase, screen))
        return [*phases, *state] if job.state in FINAL else [*state, *phases]

    @staticmethod
    def _line(phase: PhaseView, screen: Screen) -> str:
        title = PHASE_TITLE.get(phase.phase, phase.phase)
        if phase.reused:
            return f"{title}: reused"
        line = f"{title}: {done_of(phase)}"
        if speed := speed_of(phase):
            line += f", {speed}"
        if phase.eta_seconds:
            line += f", {duration(phase.eta_seconds)} left"
        if phase.phase == "training" and screen.figures():
            line += f", {screen.figures().replace('   ', ', ')}"
        return line


def show(
    updates: Iterable[Update],
    console: Console,
    *,
    record: Console | None = None,
    on_update: Callable[[Update], None] | None = None,
    screen: Screen | None = None,
    plain: PlainLines | None = None,
) -> JobView:
    """Show every update until the job has ended; return it as it ended.

    ``record`` gets what stays on the screen: every line, and the bars as they were at the end.
    """
    screen, plain = screen or Screen(), plain or PlainLines()

    def take(update: Update) -> None:
        for line in screen.take(update):
            console.print(line)
            if record:
                record.print(line)
        if not console.is_terminal:
            for text in plain.take(screen):
                console.print(text, markup=False, soft_wrap=True)
        if on_update:
            on_update(update)

    live = Live(console=console, refresh_per_second=4, get_renderable=screen.render) if console.is_terminal else nullcontext()
    with live:
        for update in updates:
            take(update)
    if record:
        record.print(screen.render())
    if screen.job is None:
        raise RuntimeError("a job was followed that never gave an update")
    return screen.job

"""Following a job: what is read, what is shown, and what happens while the service is away."""

import io
import itertools
from collections.abc import Callable, Sequence

import pytest
from rich.console import Console

from api.cli.console import Status
from api.cli.feed import GIVE_UP_SECONDS, POLL_SECONDS, Update, follow
from api.cli.watch import EXIT_OF, PlainLines, Screen, as_lines, show
from api.client import ServiceUnavailable
from service.states import FINAL
from service.views import EventView, JobView, MetricView, PhaseView


class Story:
    """A service that answers with one chapter after another; a chapter that is None is a service that is away."""

    def __init__(self, *chapters: tuple[JobView, Sequence[EventView], Sequence[MetricView]] | None) -> None:
        self.chapters = list(chapters)
        self.at = 0
        self.asked: list[tuple[str, int]] = []

    def turn(self, _seconds: float) -> None:
        self.at = min(self.at + 1, len(self.chapters) - 1)

    def _now(self) -> tuple[JobView, Sequence[EventView], Sequence[MetricView]]:
        chapter = self.chapters[self.at]
        if chapter is None:
            raise ServiceUnavailable("connection refused")
        return chapter

    def job(self, job_id: str) -> JobView:
        return self._now()[0]

    def events_after(self, job_id: str, after: int) -> Sequence[EventView]:
        self.asked.append(("events", after))
        return [event for event in self._now()[1] if event.id > after]

    def metrics_after(self, job_id: str, after: int) -> Sequence[MetricView]:
        self.asked.append(("metrics", after))
        return [metric for metric in self._now()[2] if metric.id > after]


def test_events_and_figures_come_once_each_and_the_last_update_is_the_end(
    job: Callable[..., JobView], event: Callable[..., EventView], metric: Callable[..., MetricView]
) -> None:
    one, two = event(3, "started"), event(7, "succeeded")
    story = Story((job(), [one], [metric(5, 1, loss=6.0)]), (job(state="succeeded"), [one, two], [metric(5, 1), metric(9, 2)]))
    updates = list(follow(story, "j", story.turn))
    assert [[item.id for item in update.events] for update in updates] == [[3], [7]]
    assert [[item.id for item in update.metrics] for update in updates] == [[5], [9]]
    assert updates[-1].job.state in FINAL


def test_a_service_that_restarts_in_between_is_waited_for(job: Callable[..., JobView], event: Callable[..., EventView]) -> None:
    started, ended = event(1, "started"), event(2, "succeeded")
    story = Story((job(), [started], []), None, None, (job(state="succeeded"), [started, ended], []))
    updates = list(follow(story, "j", story.turn))
    assert [update.away for update in updates] == [False, True, True, False]
    assert [item.id for update in updates for item in update.events] == [1, 2]


def test_a_service_that_stays_away_ends_the_watch(job: Callable[..., JobView]) -> None:
    story = Story((job(), [], []), None)
    updates = follow(story, "j", story.turn)
    patience = itertools.islice(updates, int(GIVE_UP_SECONDS / POLL_SECONDS) + 1)
    with pytest.raises(ServiceUnavailable):
        list(patience)


def test_a_service_that_is_away_at_the_first_look_is_waited_for_as_long_as_later(job: Callable[..., JobView]) -> None:
    story = Story(None, None, (job(state="succeeded"), [], []))
    assert [update.away for update in follow(story, "j", story.turn)] == [False]
    pauses: list[float] = []
    with pytest.raises(ServiceUnavailable):
        next(follow(Story(None), "j", pauses.append))
    assert sum(pauses) >= GIVE_UP_SECONDS - POLL_SECONDS


def test_the_screen_shows_phases_figures_and_restarts(
    job: Callable[..., JobView], phase: Callable[..., PhaseView], metric: Callable[..., MetricView], text: Callable[..., str]
) -> None:
    screen = Screen()
    progress = [phase("documents", reused=True), phase("training", 40, 80, rate=2.0, eta_seconds=20)]
    figures = metric(1, 40, loss=5.4321, eval_loss=5.5, tokens_per_second=5321.7, mfu=0.123)
    screen.take(Update(job=job(progress=progress, restarts=1), metrics=(figures,)))
    lines = text(screen.render()).splitlines()
    assert lines[0] == "quickstart  running"
    assert "reused" in lines[1]
    assert lines[2].split()[-6:] == ["steps", "2", "steps/s", "20", "s", "left"]
    assert lines[3].strip() == "on 2 workers   loss 5.4321   held out 5.5000   5,322 tokens/s   MFU 12.3%   1 restart"


@pytest.mark.parametrize(
    ("kind", "data", "style"),
    [
        ("worker_died", {}, "red"),
        ("training_resumed", {}, "green"),
        ("state", {"to": "failed"}, "red"),
        ("state", {"to": "succeeded"}, "green"),
        ("submitted", {}, "dim"),
    ],
)
def test_every_event_gets_a_line_that_stays_and_the_bad_ones_are_red(
    kind: str, data: dict[str, str], style: str, job: Callable[..., JobView], event: Callable[..., EventView]
) -> None:
    (line,) = Screen().take(Update(job=job(), events=(event(1, kind, "what it was", after=9, **data),)))
    assert (line.plain, line.style) == ("12:00:09  what it was", style)


def test_why_a_job_waits_and_how_a_paused_one_goes_on_are_on_the_screen(
    job: Callable[..., JobView], text: Callable[..., str]
) -> None:
    screen = Screen()
    screen.take(Update(job=job(state="queued", why_pending="needs 3 CPUs, 2 are free")))
    assert "waits: needs 3 CPUs, 2 are free" in text(screen.render())
    screen.take(Update(job=job(state="paused")))
    assert "`manta resume quickstart` goes on" in text(screen.render())


def test_off_a_terminal_a_phase_speaks_at_its_tenths(job: Callable[..., JobView], phase: Callable[..., PhaseView]) -> None:
    screen, plain = Screen(), PlainLines()

    def said(*progress: PhaseView, **changes: object) -> list[str]:
        screen.take(Update(job=job(progress=list(progress), **changes)))
        return plain.take(screen)

    assert said(state="preparing") == ["quickstart is preparing"]
    assert said(phase("documents", reused=True), state="preparing") == ["Documents: reused"]
    assert said(phase("training", 1, 80)) == ["quickstart is running", "Training: 1/80 steps"]
    assert said(phase("training", 7, 80)) == []
    assert said(phase("training", 8, 80, rate=2.0, eta_seconds=36.0)) == ["Training: 8/80 steps, 2 steps/s, 36 s left"]
    assert said(phase("training", 80, 80)) == ["Training: 80/80 steps"]
    assert said(phase("training", 80, 80), state="succeeded") == ["quickstart is succeeded"]


def test_off_a_terminal_how_a_job_ended_is_the_last_line(job: Callable[..., JobView], phase: Callable[..., PhaseView]) -> None:
    screen = Screen()
    screen.take(Update(job=job(state="succeeded", progress=[phase("training", 80, 80)])))
    assert PlainLines().take(screen) == ["Training: 80/80 steps", "quickstart is succeeded"]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_recording_holds_each_line_once_and_the_bars_as_they_ended(
    terminal: bool, job: Callable[..., JobView], phase: Callable[..., PhaseView], event: Callable[..., EventView]
) -> None:
    record = Console(file=io.StringIO(), width=120, record=True)
    console = Console(file=io.StringIO(), width=120, force_terminal=terminal)
    updates = [
        Update(job=job(progress=[phase("training", 3, 80)]), events=(event(1, "started", "training has begun"),)),
        Update(job=job(state="succeeded", progress=[phase("training", 80, 80)])),
    ]
    ended = show(updates, console, record=record)
    kept = record.export_text()
    assert ended.state == "succeeded"
    assert kept.count("training has begun") == 1
    assert kept.count("Training") == 1
    assert "80/80" in kept


def test_json_lines_name_what_changed(
    job: Callable[..., JobView], event: Callable[..., EventView], metric: Callable[..., MetricView]
) -> None:
    lines = as_lines(Update(job=job(), events=(event(1, "started"),), metrics=(metric(2, 1, loss=6.0),)))
    assert [list(line) for line in lines] == [["event"], ["metrics"], ["job"]]
    assert lines[1]["metrics"]["values"] == {"loss": 6.0}
    assert as_lines(Update(job=job()), before=job()) == []


def test_the_exit_status_is_the_job_s_own() -> None:
    assert set(EXIT_OF) == FINAL
    assert [int(EXIT_OF[state]) for state in ("succeeded", "failed", "cancelled")] == [0, 1, 3]  # type: ignore[index]
    assert Status.INTERRUPTED == 130

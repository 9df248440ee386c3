"""The demo without a cluster: what it starts it stops, in order, whenever and however often it is interrupted."""

import io
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from api.cli import demo
from api.cli.feed import JobSource, Update
from api.cli.signals import Stopped, StopSignals
from service.views import EventView, JobView, MetricView, PhaseView


class FakeManta:
    """Notes what is done with it, and does to the demo what a test asks for at that moment."""

    def __init__(self, job: JobView, at: dict[str, Callable[[], Any]] | None = None) -> None:
        self._job = job
        self._at = at or {}
        self.done: list[str] = []

    def _now(self, moment: str) -> None:
        self.done.append(moment)
        self._at.get(moment, lambda: None)()

    def start(self, held: Callable[[], AbstractContextManager[None]]) -> JobSource:
        with held():
            self._now("launch")
            self.done.append("launched")
        self._now("ready")
        return self

    def submit(self, spec: Path) -> JobView:
        self._now("submit")
        return self._job

    def job(self, job_id: str) -> JobView:
        self._now("watch")
        return self._job

    def events_after(self, job_id: str, after: int) -> Sequence[EventView]:
        return []

    def metrics_after(self, job_id: str, after: int) -> Sequence[MetricView]:
        return []

    def stop(self) -> None:
        self._now("stop")
        self.done.append("stopped")


def press(number: int = signal.SIGINT) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def run(manta: FakeManta, tmp_path: Path) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=110)
    before = signal.getsignal(signal.SIGINT)
    status = demo.run(manta, tmp_path / "job.yaml", tmp_path, demo.Stage(console))
    assert signal.getsignal(signal.SIGINT) is before
    assert isinstance(console.file, io.StringIO)
    return status, console.file.getvalue()


RESULT: dict[str, Any] = {
    "steps": 80, "tokens": 655_360, "train_loss": 5.1, "eval_loss": 5.2, "unigram_loss": 6.5, "bigram_loss": 5.0,
    "one_token_context_loss": 5.6, "tokens_per_second": 8000.0, "mfu": None, "checkpoint": "/home/ada/c/step-00000080",
    "samples": ["one", "two", "three", "four"], "seconds": 80.0,
}  # fmt: skip


def test_the_last_screen_compares_with_its_peers_and_says_how_to_go_on(job: Callable[..., JobView], tmp_path: Path) -> None:
    manta = FakeManta(job(state="succeeded", reason="completed", result=RESULT))
    status, screen = run(manta, tmp_path)
    assert status == 0
    assert manta.done[-2:] == ["stop", "stopped"]
    for part in (
        "20.0% below",
        "4.0% above",
        "8,000",
        "/home/ada/c/step-00000080",
        "» three",
        "make serve",
        "manta submit FILE",
    ):
        assert part in screen
    assert "four" not in screen


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"unigram_loss": 5.2 / (1 - demo.UNIGRAM_MARGIN) - 0.01}, "15% below the unigram's"),
        ({"one_token_context_loss": 5.2 / (1 - demo.ONE_TOKEN_MARGIN) - 0.01}, "5% below that with one token of context"),
        ({"eval_loss": float("nan")}, "nan"),
        ({"eval_loss": None}, "missing"),
    ],
)
def test_a_model_that_has_learnt_too_little_fails_the_demo(
    changes: dict[str, Any], words: str | None, job: Callable[..., JobView], tmp_path: Path
) -> None:
    assert (demo.UNIGRAM_MARGIN, demo.ONE_TOKEN_MARGIN) == (0.15, 0.05)
    manta = FakeManta(job(state="succeeded", reason="completed", result={**RESULT, **changes}))
    status, screen = run(manta, tmp_path)
    assert status == (0 if words is None else 1)
    assert words is None or words in " ".join(screen.split())


@pytest.mark.parametrize(("state", "status"), [("failed", 1), ("cancelled", 3)])
def test_a_job_that_does_not_succeed_ends_the_demo_with_its_status(
    state: str, status: int, job: Callable[..., JobView], tmp_path: Path
) -> None:
    failure = {"code": "worker_failed", "detail": "no space left on device"} if state == "failed" else None
    manta = FakeManta(job(state=state, failure=failure, reason="user"))
    ended, screen = run(manta, tmp_path)
    assert ended == status
    assert manta.done[-1] == "stopped"
    assert failure is None or "no space left on device" in screen


@pytest.mark.parametrize("moment", ["launch", "ready", "submit", "watch"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_moment_stops_what_was_started_once(
    moment: str, number: int, job: Callable[..., JobView], tmp_path: Path
) -> None:
    manta = FakeManta(job(), {moment: press(number)})
    status, screen = run(manta, tmp_path)
    assert status == 128 + number
    assert manta.done.count("stopped") == 1
    assert "Nothing is left running" in screen


def test_a_signal_while_a_process_starts_waits_until_that_process_is_known(job: Callable[..., JobView], tmp_path: Path) -> None:
    manta = FakeManta(job(), {"launch": press()})
    run(manta, tmp_path)
    assert manta.done == ["launch", "launched", "stop", "stopped"]


@pytest.mark.parametrize("first", ["launch", "watch"])
def test_more_signals_do_not_interrupt_the_clean_up(first: str, job: Callable[..., JobView], tmp_path: Path) -> None:
    def twice() -> None:
        press()()
        press(signal.SIGTERM)()

    manta = FakeManta(job(), {first: press(), "stop": twice})
    status, _ = run(manta, tmp_path)
    assert status == 130
    assert manta.done[-2:] == ["stop", "stopped"]


def test_a_signal_during_a_regular_end_does_not_interrupt_it_either(job: Callable[..., JobView], tmp_path: Path) -> None:
    manta = FakeManta(job(state="succeeded", result=RESULT), {"stop": press()})
    status, _ = run(manta, tmp_path)
    assert status == 0
    assert manta.done[-1] == "stopped"


def test_an_error_while_starting_stops_what_was_started(job: Callable[..., JobView], tmp_path: Path) -> None:
    def broken() -> None:
        raise demo.DemoBusy("no")

    manta = FakeManta(job(), {"ready": broken})
    with pytest.raises(demo.DemoBusy):
        run(manta, tmp_path)
    assert manta.done == ["launch", "launched", "ready", "stop", "stopped"]


def test_two_demos_do_not_share_a_home(tmp_path: Path) -> None:
    with demo.only_one(tmp_path / "home"):
        with pytest.raises(demo.DemoBusy, match="--home"), demo.only_one(tmp_path / "home"):
            raise AssertionError("both hold it")
        with demo.only_one(tmp_path / "elsewhere"):
            pass


def test_a_home_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(demo.NotADemoHome, match="not empty"), demo.only_one(tmp_path):
        raise AssertionError("taken")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_demo_begins_anew_but_keeps_prepared_data(tmp_path: Path) -> None:
    with demo.only_one(tmp_path / "home"):
        pass
    for name in ("jobs/a/checkpoints", "logs", "prepared/b"):
        (tmp_path / "home" / name).mkdir(parents=True)
    for name in ("manta.db", "manta.db-wal"):
        (tmp_path / "home" / name).touch()
    with demo.only_one(tmp_path / "home"):
        demo.clear(tmp_path / "home")
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["demo.lock", "prepared"]
    assert (tmp_path / "home" / "prepared" / "b").is_dir()


def test_a_stop_signal_raises_once_however_many_arrive() -> None:
    with StopSignals() as signals:
        with pytest.raises(Stopped) as stopped:
            press()()
        press()()
        press(signal.SIGTERM)()
        assert signals.arrived == signal.SIGINT
    assert stopped.value.exit_status == 130


def test_the_time_is_accounted_for_and_reused_phases_are_named(
    job: Callable[..., JobView], phase: Callable[..., PhaseView]
) -> None:
    times = demo.PhaseTimes(0.0)
    times.lap("Manta starts", 9.0)
    reused = [phase(name, reused=True) for name in ("documents", "tokenizer", "shards")]
    times.take(Update(job=job(state="queued")), 10.0)
    times.take(Update(job=job(progress=reused)), 15.0)
    times.take(Update(job=job(progress=[*reused, phase("training", 1, 80)])), 20.0)
    times.take(Update(job=job(progress=[*reused, phase("training", 80, 80)])), 80.0)
    times.lap("Manta stops", 83.0)
    assert demo.times_line(times.laps) == (
        "Manta starts 9.0 s · Attempt starts 6.0 s · Documents reused · Tokenizer reused · Packed shards reused"
        " · Workers start 5.0 s · Training 1 min 00 s · Manta stops 3.0 s · total 1 min 23 s"
    )

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from api.cli import pages
from api.cli.text import count, duration, percent_below, size
from service.views import AttemptView, CheckpointView, EventView, JobView, PhaseView, WorkerView

SUMMARY: dict[str, Any] = {
    "steps": 80,
    "tokens": 655_360,
    "train_loss": 5.1,
    "eval_loss": 5.2,
    "unigram_loss": 6.5,
    "bigram_loss": 5.0,
    "one_token_context_loss": 5.6,
    "tokens_per_second": 8123.4,
    "mfu": 0.123,
    "step_parts": {"attention": 0.5, "experts": 0.75, "data_wait": 0.0},
    "checkpoint": "/home/ada/checkpoints/step-00000080",
    "samples": ["def run(self):\n    return", "The value of"],
    "seconds": 81.0,
}


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (48.4, "48 s"),
        (60, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations_read_at_a_glance(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"), [(7, "7"), (7.25, "7.2"), (950, "950"), (12_345, "12,345"), (1_250_000, "1.25 M"), (3.1e9, "3.10 B")]
)
def test_counts_read_at_a_glance(number: float, shown: str) -> None:
    assert count(number) == shown


def test_sizes_are_binary_and_shares_say_their_side() -> None:
    assert [size(n) for n in (12, 2048, 5 * 2**20, 3 * 2**40)] == ["12 B", "2.0 KiB", "5.0 MiB", "3.0 TiB"]
    assert percent_below(4.0, 5.0) == "20.0% below"
    assert percent_below(5.5, 5.0) == "10.0% above"


def test_an_empty_list_says_how_to_begin(text: Callable[..., str], at: Callable[[float], datetime]) -> None:
    assert "manta submit FILE" in text(pages.job_list([], at(0)))


def test_the_list_says_why_a_job_waits(
    job: Callable[..., JobView], text: Callable[..., str], at: Callable[[float], datetime]
) -> None:
    waiting = job(id="j-2", state="queued", started_at=None, why_pending="2 of 4 CPUs are free; it needs 3", total_steps=None)
    lines = text(pages.job_list([job(step=12), waiting], at(31))).splitlines()
    assert lines[0].split() == ["job", "name", "kind", "state", "step", "took", "restarts", "created", "why"]
    assert lines[2].split()[:7] == ["j-8c1f02aa", "quickstart", "train", "running", "12/80", "30", "s"]
    assert "2 of 4 CPUs are free" in " ".join(lines[3:])


def test_every_phase_shows_how_far_it_is(phase: Callable[..., PhaseView], text: Callable[..., str]) -> None:
    progress = [
        phase("documents", 2048, 8192, rate=512.0),
        phase("tokenizer", 0, 1, rate=0.4),
        phase("shards", 300, None, rate=100.0),
        phase("shards", reused=True),
        phase("training", 20, 80, rate=1.5, eta_seconds=40.0),
    ]
    rows = [line.split() for line in text(pages.phases_table(progress)).splitlines()]
    plain = [[word for word in row if not set(word) <= set("━╸╺ ")] for row in rows]
    assert plain == [
        ["Documents", "2.0", "KiB/8.0", "KiB", "512", "B/s"],
        ["Tokenizer", "0/1", "model"],
        ["Packed", "shards", "300", "documents", "100", "documents/s"],
        ["Packed", "shards", "reused"],
        ["Training", "20/80", "steps", "1.5", "steps/s", "40", "s", "left"],
    ]


def test_a_death_is_paired_with_its_resumption_and_says_what_it_cost(event: Callable[..., EventView]) -> None:
    story = [
        event(1, "worker_died", rank=1, pid=4242, host="n1", step=37, after=10),
        event(2, "training_resumed", step=21, cost_seconds=9.1, lost_steps=17, after=19),
        event(3, "worker_died", rank=0, pid=4300, step=50, after=60),
    ]
    first, second = map(pages.restart_line, pages.restarts(story))
    assert first == "rank 1, pid 4242 on n1 died after step 37; training again at step 21 after 9.1 s, 17 steps done again"
    assert second == "rank 0, pid 4300 died after step 50; no step since"


def test_a_cost_that_is_not_reported_is_the_time_between(event: Callable[..., EventView]) -> None:
    story = [event(1, "worker_died", rank=1, after=10), event(2, "training_resumed", after=22)]
    assert pages.restart_line(pages.restarts(story)[0]) == "rank 1 died; training again after 12 s"


def test_the_job_page_holds_everything_about_a_job(
    job: Callable[..., JobView],
    phase: Callable[..., PhaseView],
    event: Callable[..., EventView],
    text: Callable[..., str],
    at: Callable[[float], datetime],
) -> None:
    page = text(
        pages.job_page(
            job(
                state="succeeded", reason="completed", restarts=1, ended_at=at(90), result=SUMMARY,
                progress=[phase("training", 80, 80)],
            ),
            attempts=[
                AttemptView(
                    number=1, state="ended", outcome="succeeded", submission_id="manta-x-1", generation=2, created_at=at(1),
                    ended_at=at(89), detail=None,
                )
            ],
            workers=[
                WorkerView(attempt=1, generation=1, rank=1, node="n1", pid=4242, state="died", step=37, heartbeat_at=at(40)),
                WorkerView(attempt=1, generation=2, rank=-1, node="n1", pid=40, state="ended", step=None, heartbeat_at=at(88)),
            ],
            events=[
                event(1, "submitted", "submitted by the user", actor="user"),
                event(2, "worker_died", rank=1, pid=4242, step=37, after=40),
                event(3, "training_resumed", step=21, cost_seconds=9.1, lost_steps=17, after=49),
            ],
            checkpoints=[
                CheckpointView(step=80, attempt=1, path="/c/step-80", bytes=5 * 2**20, state="committed", created_at=at(88))
            ],
            now=at(300),
        )
    )  # fmt: skip
    for part in (
        "quickstart  j-8c1f02aa  train  succeeded (completed)",
        "took 1 min 29 s",
        "submitted by the user",
        "Restarts (1)",
        "12:00:40  rank 1, pid 4242 died after step 37; training again at step 21 after 9.1 s, 17 steps done again",
        "driver",
        "5.0 MiB",
        "20.0% below",
        "MFU 12.3%",
        "experts 60.0%, attention 40.0%, data wait 0.0%",
        "» def run(self): return",
    ):
        assert part in page
    assert "manta watch" not in page


def test_a_failure_shows_where_it_was_and_the_end_of_that_log(text: Callable[..., str]) -> None:
    failure = {
        "code": "worker_failed", "detail": "ZeroDivisionError: [x]", "rank": 1, "node": "n1", "step": 12, "pointer": None,
        "log_tail": "line one\nline two",
    }  # fmt: skip
    assert text(pages.failure_text(failure)).splitlines() == [
        "worker_failed ZeroDivisionError: [x] (rank 1, node n1, step 12)",
        "  | line one",
        "  | line two",
    ]
    of_the_driver = {"code": "pretrained_mismatch", "detail": "another model", "rank": -1, "node": "15c912f5dfe4d4bd629356b07b"}
    assert text(pages.failure_text(of_the_driver)) == "pretrained_mismatch another model (driver, node 15c912f5dfe4d4bd)"


def test_deleted_checkpoints_stay_on_the_list(text: Callable[..., str], at: Callable[[float], datetime]) -> None:
    gone = CheckpointView(step=20, attempt=1, path="/c/step-20", bytes=2048, state="deleted", created_at=at(5))
    assert "20" in (page := text(pages.checkpoints_table([gone])))
    assert "deleted" in page
    assert text(pages.checkpoints_table([])) == "No checkpoints yet."

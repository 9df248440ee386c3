"""Reporting to a service that may be slow, away, or done with us; and the silent and the printing reporter beside it."""

import inspect
import io
import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from workers.attempt import Desired, Order, Phase, Report, ReportBatch, Summary
from workers.reporter import BACKOFF_SECONDS, BATCH_REPORTS, BATCH_SECONDS, LocalReporter, NullReporter, Reporter, Reports


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Service:
    """Stores each report under its key, as the real one does, and says what the user wants."""

    def __init__(self) -> None:
        self.stored: dict[tuple[int, int, int], Report] = {}
        self.received = 0
        self.desired = Desired.RUNNING
        self.status = 200
        self.away = False
        self.refuses: int | None = None
        self.headers: list[httpx.Headers] = []
        self.paths: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.away:
            raise httpx.ConnectError("connection refused")
        self.headers.append(request.headers)
        self.paths.append(request.url.path)
        if self.status != 200:
            return httpx.Response(self.status, json={"code": "stale_attempt"})
        reports = ReportBatch.model_validate_json(request.content).reports
        if any(report.kind == "metrics" and report.data["step"] == self.refuses for report in reports):
            return httpx.Response(422)
        for report in reports:
            self.received += 1
            self.stored.setdefault((report.generation, report.rank, report.sequence), report)
        return httpx.Response(200, json={"desired": self.desired})

    def steps(self) -> list[int]:
        return [report.data["step"] for report in self.stored.values() if report.kind == "metrics"]


def order(tmp_path: Path, url: str = "http://service") -> Order:
    return Order(
        job_id="j1",
        job_name="demo",
        kind="train",
        attempt=3,
        token="secret",
        service_url=url,
        spec={},
        job_dir=tmp_path,
        prepared_dir=tmp_path,
    )


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., Reporter]


@pytest.fixture
def make(tmp_path: Path, service: Service, clock: Clock) -> Make:
    def make(generation: int = 1, rank: int = 0) -> Reporter:
        transport = httpx.MockTransport(service)
        return Reporter(order(tmp_path), generation, rank, tmp_path / "spool", transport=transport, clock=clock, start=False)

    return make


def summary() -> Summary:
    losses = {"train_loss": 1.0, "eval_loss": 2.0, "unigram_loss": 3.0, "bigram_loss": 2.5, "one_token_context_loss": 2.6}
    return Summary(steps=1, tokens=2, tokens_per_second=3.0, mfu=None, checkpoint="c", samples=["s"], seconds=1.0, **losses)


def say_everything(reporter: Reports) -> None:
    reporter.phase(Phase.DOCUMENTS, 1, 2, "documents")
    reporter.metrics(1, {"loss": 2.0})
    reporter.event("worker_died", "rank 1 died", rank=1)
    reporter.worker("started")
    reporter.heartbeat(1)
    reporter.checkpoint(1, "/c", 10, "committed")
    reporter.result(summary())
    reporter.failure("code", "detail", rank=1)
    reporter.ended("failed")


@pytest.mark.parametrize("kind", ["http", "local", "null"])
def test_every_reporter_takes_every_report(kind: str, make: Make) -> None:
    reporters: dict[str, Callable[[], Reports]] = {
        "http": make,
        "local": lambda: LocalReporter(io.StringIO()),
        "null": NullReporter,
    }
    reporter = reporters[kind]()
    say_everything(reporter)
    assert reporter.desired is Desired.RUNNING
    assert reporter.stale is False
    if isinstance(reporter, Reporter):
        reporter.pump()
    assert reporter.flush(0.0) is True
    assert reporter.close() is True


def test_the_three_of_them_have_the_same_words() -> None:
    words = {name for name, _ in inspect.getmembers(Reports, inspect.isfunction) if not name.startswith("_")}
    for kind in (Reporter, LocalReporter, NullReporter):
        for word in words:
            assert (
                inspect.signature(getattr(kind, word)).parameters.keys()
                == inspect.signature(getattr(Reports, word)).parameters.keys()
            ), (kind, word)


def test_reports_arrive_in_order_with_time_and_identity(make: Make, service: Service) -> None:
    reporter = make(generation=2, rank=1)
    say_everything(reporter)
    reporter.pump()
    kinds = [report.kind for report in service.stored.values()]
    assert sorted(kinds) == sorted(
        ["phase", "metrics", "event", "worker", "heartbeat", "checkpoint", "result", "failure", "ended"]
    )
    assert [key for key in service.stored if service.stored[key].kind != "heartbeat"] == [
        (2, 1, n) for n in (1, 2, 3, 4, 6, 7, 8, 9)
    ]
    assert {report.time for report in service.stored.values()} == {1000.0}
    assert service.paths == ["/api/v1/jobs/j1/attempts/3/reports"]
    assert service.headers[0]["authorization"] == "Bearer secret"


def test_the_answer_carries_what_the_user_wants(make: Make, service: Service, clock: Clock) -> None:
    reporter = make()
    service.desired = Desired.PAUSED
    reporter.heartbeat(1)
    reporter.pump()
    assert reporter.desired is Desired.PAUSED
    service.desired = Desired.CANCELLED
    reporter.pump()
    assert reporter.desired is Desired.PAUSED  # asked a moment ago
    clock.now += BATCH_SECONDS
    reporter.pump()
    assert reporter.desired is Desired.CANCELLED


def test_a_rank_that_decides_nothing_does_not_ask(make: Make, service: Service, clock: Clock) -> None:
    reporter = make(rank=1)
    clock.now += 60
    reporter.pump()
    assert service.paths == []


def test_batches_are_bounded_and_follow_at_once(make: Make, service: Service) -> None:
    reporter = make()
    for step in range(BATCH_REPORTS + 1):
        reporter.metrics(step, {"loss": 1.0})
    assert reporter.pump() == 0.0
    assert len(service.stored) == BATCH_REPORTS
    assert reporter.pump() == BATCH_SECONDS
    assert service.steps() == list(range(BATCH_REPORTS + 1))


def test_only_the_newest_heartbeat_is_sent(make: Make, service: Service) -> None:
    reporter = make()
    for step in range(5):
        reporter.heartbeat(step)
    reporter.pump()
    assert [report.data["step"] for report in service.stored.values()] == [4]


@pytest.mark.parametrize(("rank", "seconds"), [(-1, [0, 2, 4, 6, 8]), (0, [0, 2, 4, 6, 8]), (1, [0, 5]), (255, [0, 5])])
def test_heartbeats_alone_go_seldom(make: Make, service: Service, clock: Clock, rank: int, seconds: list[int]) -> None:
    reporter = make(rank=rank)
    began = clock.now
    while (now := clock.now - began) < 10:
        reporter.heartbeat(int(now))
        clock.now += reporter.pump()
    assert [report.data["step"] for report in service.stored.values()] == seconds


def test_nothing_is_lost_while_the_service_is_away(make: Make, service: Service) -> None:
    reporter = make()
    service.away = True
    delays = []
    for step in range(8):
        reporter.metrics(step, {"loss": 1.0})
        delays.append(reporter.pump())
    assert delays[:3] == [0.25, 0.5, 1.0]
    assert delays[-1] == BACKOFF_SECONDS[1]
    service.away = False
    assert reporter.pump() == BATCH_SECONDS
    assert service.steps() == list(range(8))


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_an_answer_that_is_no_decision_is_tried_again(make: Make, service: Service, status: int) -> None:
    reporter = make()
    reporter.metrics(1, {"loss": 1.0})
    service.status = status
    reporter.pump()
    service.status = 200
    reporter.pump()
    assert service.steps() == [1]
    assert not reporter.stale


def test_another_program_on_our_port_is_not_the_service(tmp_path: Path, clock: Clock) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text="<html>"))
    reporter = Reporter(order(tmp_path), 1, 0, tmp_path / "spool", transport=transport, clock=clock, start=False)
    reporter.metrics(1, {"loss": 1.0})
    assert reporter.pump() == BACKOFF_SECONDS[0]
    assert reporter.flush(0.0) is False


def test_a_report_that_can_never_be_stored_does_not_hold_up_the_others(make: Make, service: Service) -> None:
    reporter = make()
    reporter.metrics(1, {"loss": 1.0})
    service.status = 422
    reporter.pump()
    service.status = 200
    reporter.metrics(2, {"loss": 1.0})
    reporter.pump()
    assert service.steps() == [2]


def test_of_many_reports_only_the_one_to_blame_is_given_up(make: Make, service: Service) -> None:
    reporter = make()
    service.refuses = 13
    for step in range(20):
        reporter.metrics(step, {"loss": 1.0})
    while reporter.pump() == 0.0:
        pass
    assert service.steps() == [step for step in range(20) if step != 13]
    for step in range(20, 60):  # and batches grow again
        reporter.metrics(step, {"loss": 1.0})
    service.paths.clear()
    while reporter.pump() == 0.0:
        pass
    assert service.steps()[-1] == 59
    assert len(service.paths) < 8


def test_text_that_is_no_unicode_is_reported_as_well_as_can_be(make: Make, service: Service) -> None:
    reporter = make()
    reporter.failure("worker_failed", "byte \udc80", log_tail=["also \udcff here"], **{"key \ud800": 1})
    reporter.pump()
    (report,) = service.stored.values()
    assert (report.data["detail"], report.data["log_tail"], report.data["key ?"]) == ("byte ?", ["also ? here"], 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_closing_does_not_wait_for_a_thread_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unforeseen(self: Reporter) -> float:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(Reporter, "pump", unforeseen)
    reporter = Reporter(order(tmp_path), 1, 0, tmp_path / "spool")
    reporter.metrics(1, {"loss": 1.0})
    assert reporter.close(timeout=threading.TIMEOUT_MAX) is False
    assert (tmp_path / "spool" / "g1-r0.jsonl").exists()


def test_a_stale_attempt_learns_it_and_falls_silent(make: Make, service: Service) -> None:
    reporter = make()
    reporter.metrics(1, {"loss": 1.0})
    service.status = 409
    reporter.pump()
    assert reporter.stale
    reporter.metrics(2, {"loss": 1.0})
    assert reporter.flush(0.0)
    service.status = 200
    reporter.pump()
    assert service.steps() == []


def test_a_process_that_starts_again_sends_what_the_killed_one_had_not(make: Make, service: Service) -> None:
    killed = make()
    killed.metrics(1, {"loss": 1.0})
    killed.pump()
    service.away = True
    killed.metrics(2, {"loss": 1.0})
    killed.pump()
    service.away = False
    heir = make()
    heir.metrics(3, {"loss": 1.0})
    heir.pump()
    assert service.steps() == [1, 2, 3]
    assert service.received == 3
    assert sorted(service.stored) == [(1, 0, 1), (1, 0, 2), (1, 0, 3)]


def test_the_driver_adopts_the_spools_of_dead_workers(make: Make, service: Service, tmp_path: Path) -> None:
    for rank in (0, 1):
        killed = make(generation=1, rank=rank)
        killed.metrics(rank, {"loss": 1.0})
    driver = make(generation=0, rank=-1)
    assert driver.adopt() == 2
    assert driver.adopt() == 0
    driver.pump()
    assert set(service.stored) == {(1, 0, 1), (1, 1, 1)}
    driver.close()
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_torn_line_in_a_spool_is_passed_over(make: Make, service: Service, tmp_path: Path) -> None:
    killed = make()
    killed.metrics(1, {"loss": 1.0})
    spool = tmp_path / "spool" / "g1-r0.jsonl"
    spool.write_bytes(spool.read_bytes() + b'{"generation": 1, "ra')
    heir = make()
    heir.metrics(2, {"loss": 1.0})
    heir.pump()
    assert service.steps() == [1, 2]
    again = make()
    again.pump()
    assert service.received == 2


def test_a_full_disk_does_not_silence_the_reporter(make: Make, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> int:
        raise OSError(28, "No space left on device")

    reporter = make()
    monkeypatch.setattr("workers.reporter.os.write", full)
    reporter.failure("checkpoint_write_failed", "No space left on device")
    reporter.pump()
    assert [report.kind for report in service.stored.values()] == ["failure"]


def test_figures_that_json_cannot_hold_are_counted(make: Make, service: Service) -> None:
    reporter = make()
    reporter.metrics(1, {"loss": math.nan, "grad_norm": math.inf, "tokens": 5})
    reporter.pump()
    assert [report.data["values"] for report in service.stored.values()] == [{"tokens": 5.0, "non_finite": 2.0}]


def test_the_printing_reporter_has_one_line_a_report() -> None:
    stream = io.StringIO()
    say_everything(LocalReporter(stream))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 8
    assert lines[1] == "step 1  loss 2"


def test_the_printing_reporter_keeps_figures_with_their_time(tmp_path: Path) -> None:
    reporter = LocalReporter(io.StringIO(), tmp_path / "metrics.jsonl", clock=Clock())
    reporter.metrics(3, {"loss": 2.0})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"time": 1000.0, "step": 3, "values": {"loss": 2.0}}


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]], threading.Event]]:
    """A real HTTP server that answers nothing before ``may_answer``."""
    reports: list[dict[str, Any]] = []
    may_answer = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            may_answer.wait()
            reports.extend(body["reports"])
            answer = json.dumps({"desired": "running"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", reports, may_answer
    may_answer.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_slow_service_never_blocks_a_step(tmp_path: Path, server: tuple[str, list[dict[str, Any]], threading.Event]) -> None:
    url, reports, may_answer = server
    reporter = Reporter(order(tmp_path, url), 1, 0, tmp_path / "spool")
    for step in range(100):  # all of it returns while the service has answered nothing
        reporter.metrics(step, {"loss": 1.0})
    assert reports == []
    may_answer.set()
    assert reporter.close(timeout=30.0)
    steps = [report["data"]["step"] for report in reports if report["kind"] == "metrics"]
    assert steps == list(range(100))
    assert list((tmp_path / "spool").iterdir()) == []

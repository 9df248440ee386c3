"""Live streams over real HTTP: nothing lost, nothing twice, nothing left behind."""

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from api.client import Message, parse_events, split_lines
from service.launcher import LaunchStatus
from service.states import JobState
from tests.api.conftest import Manta, Start
from workers.attempt import Order, Report

_sequence = itertools.count(1)


def report(kind: Any, rank: int = 0, generation: int = 1, **data: Any) -> Report:
    return Report(generation=generation, rank=rank, sequence=next(_sequence), kind=kind, time=1.0, data=data)


def metrics(step: int, loss: float = 1.0) -> Report:
    return report("metrics", step=step, values={"loss": loss})


def finish(manta: Manta, order: Order) -> None:
    """The attempt's last word, and the end of its submission."""
    assert manta.report(order, report("ended", rank=-1, outcome="succeeded")).status_code == 200
    manta.launcher.states[f"manta-{order.job_id}-1"] = LaunchStatus("succeeded")


@contextmanager
def opened(manta: Manta, path: str, last_id: str | None = None) -> Iterator[Iterator[Message]]:
    headers = {"Last-Event-ID": last_id} if last_id is not None else {}
    with manta.http.stream("GET", path, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield parse_events(split_lines(answer.iter_bytes()))


def until(condition: Any) -> None:
    """Wait for another thread's work; pytest's timeout is the limit."""
    while not condition():
        time.sleep(0.01)


def test_metrics_come_live_and_end_with_the_job(start: Start) -> None:
    manta = start(cpus=8)
    job, order = manta.started_job()
    manta.report(order, metrics(1), metrics(2))
    with opened(manta, f"/jobs/{job.id}/metrics/stream") as messages:
        assert [next(messages).json()["step"] for _ in range(2)] == [1, 2]
        manta.report(order, metrics(3))
        third = next(messages)
        assert (third.event, third.json()["values"]) == ("metric", {"loss": 1.0})
        finish(manta, order)
        last = next(messages)
        assert (last.event, last.json()) == ("end", {"state": "succeeded"})
        assert list(messages) == []


def test_a_stream_resumes_behind_the_last_event_that_was_seen(start: Start) -> None:
    manta = start(cpus=8)
    job, order = manta.started_job()
    manta.report(order, *(metrics(step) for step in range(1, 6)))
    path = f"/jobs/{job.id}/metrics/stream"
    with opened(manta, path) as messages:
        seen = [next(messages) for _ in range(3)]
    with opened(manta, path, last_id=seen[-1].id) as messages:
        assert [next(messages).json()["step"] for _ in range(2)] == [4, 5]


def test_a_step_that_is_done_again_is_streamed_again(start: Start) -> None:
    manta = start(cpus=8)
    job, order = manta.started_job()
    manta.report(order, metrics(1, loss=5.0))
    with opened(manta, f"/jobs/{job.id}/metrics/stream") as messages:
        assert next(messages).json()["values"] == {"loss": 5.0}
        manta.report(order, report("metrics", generation=2, step=1, values={"loss": 4.0}))
        again = next(messages).json()
    assert (again["step"], again["generation"], again["values"]) == (1, 2, {"loss": 4.0})


def test_a_figure_that_is_no_number_arrives_as_such(start: Start) -> None:
    manta = start(cpus=8)
    job, order = manta.started_job()
    manta.report(order, report("metrics", step=1, values={"loss": "NaN", "tokens": 3.0}))
    paged = manta.client.metrics(job.id).items[0]
    streamed = next(manta.client.stream_metrics(job.id))
    for metric in (paged, streamed):
        assert math.isnan(metric.values["loss"])
        assert metric.values["tokens"] == 3.0


def test_events_and_the_job_itself_are_streamed(manta: Manta) -> None:
    job = manta.job()
    with opened(manta, f"/jobs/{job.id}/stream") as snapshots, opened(manta, f"/jobs/{job.id}/events/stream") as events:
        assert next(snapshots).json()["state"] == "queued"
        assert next(events).json()["type"] == "submitted"
        manta.client.cancel(job.id)
        assert [message.json()["state"] for message in snapshots][-2:] == ["cancelled", "cancelled"]
        *_, last = events
        assert last.event == "end"


def test_a_job_that_is_deleted_meanwhile_ends_its_streams(manta: Manta) -> None:
    job = manta.job()
    for path in ("stream", "events/stream", "metrics/stream", "logs"):
        victim = manta.job()
        with opened(manta, f"/jobs/{victim.id}/{path}") as messages:
            manta.client.cancel(victim.id)
            manta.client.delete(victim.id)
            *_, last = messages
            assert last.event == "end"
    assert manta.client.get(job.id).state is JobState.QUEUED


@pytest.mark.parametrize("path", ["stream", "events/stream", "metrics/stream", "logs"])
def test_a_client_that_vanishes_leaves_nothing(shared: Manta, path: str) -> None:
    changes = shared.services.changes
    until(lambda: changes.watchers == 0)
    job = shared.job()
    with httpx.Client(base_url=shared.http.base_url) as vanishing:
        request = vanishing.build_request("GET", f"/jobs/{job.id}/{path}")
        answer = vanishing.send(request, stream=True)
        chunks = answer.iter_raw()  # held: an iterator that is dropped closes its connection
        next(chunks)
        until(lambda: changes.watchers == 1)
    until(lambda: changes.watchers == 0)


def test_a_service_that_goes_down_ends_streams_without_an_end_event(start: Start) -> None:
    manta = start()
    job = manta.job()
    with opened(manta, f"/jobs/{job.id}/events/stream") as messages:
        assert next(messages).event == "event"
        manta.services.changes.close()
        assert list(messages) == []


# -- the client over a restart ---------------------------------------------------------------------------------------------


def test_the_client_goes_on_where_a_lost_connection_ended() -> None:
    from api.client import Client

    event = 'event: metric\ndata: {{"id":{0},"attempt":1,"generation":1,"step":{0},"at":0,"values":{{}}}}\nid: {0}\n\n'
    connections = iter(
        [
            httpx.Response(200, text=event.format(1) + event.format(2) + "data: torn"),
            httpx.ConnectError("refused"),
            httpx.Response(503, json={"code": "store_unavailable", "detail": "later"}),
            httpx.Response(200, text=event.format(3) + 'event: end\ndata: {"state":"succeeded"}\n\n'),
        ]
    )
    asked: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("last-event-id"))
        step = next(connections)
        if isinstance(step, Exception):
            raise step
        return step

    pauses: list[float] = []
    client = Client("http://manta", transport=httpx.MockTransport(answer), pause=pauses.append)
    assert [metric.step for metric in client.stream_metrics("j")] == [1, 2, 3]
    assert asked == [None, "2", "2", "2"]
    assert pauses == sorted(pauses)


def test_lines_end_where_the_standard_ends_them_however_the_bytes_arrive() -> None:
    stream = "a\u2028b\x85c\u2029\x0bd\r\ne\rf\n\ng".encode()
    for size in range(1, len(stream)):
        chunks = (stream[at : at + size] for at in range(0, len(stream), size))
        assert list(split_lines(chunks)) == ["a\u2028b\x85c\u2029\x0bd", "e", "f", ""]


def test_the_client_gives_up_on_a_service_that_does_not_come_back() -> None:
    from api.client import GIVE_UP_SECONDS, Client, ServiceUnavailable

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    pauses: list[float] = []
    client = Client("http://manta", transport=httpx.MockTransport(refuse), pause=pauses.append)
    with pytest.raises(ServiceUnavailable, match="went away"):
        list(client.stream_job("j"))
    assert sum(pauses) >= GIVE_UP_SECONDS


# -- reports ---------------------------------------------------------------------------------------------------------------


def test_reports_carry_the_attempts_own_token(start: Start) -> None:
    manta = start(cpus=8, token="the-user's-own-token")
    job = manta.client.submit({"name": "x"})
    assert manta.launcher.submitted.wait(20)
    order = Order.model_validate_json((manta.settings.jobs_dir / job.id / "attempts/1/order.json").read_bytes())
    assert manta.report(order, metrics(1)).json() == {"desired": "running"}
    assert manta.report(order, metrics(2), token="the-user's-own-token").json()["code"] == "invalid_token"
    bare = manta.http.post(f"/jobs/{job.id}/attempts/1/reports", json={"reports": []})
    assert (bare.status_code, bare.json()["code"]) == (401, "unauthorized")
    assert [metric.step for metric in manta.client.metrics(job.id).items] == [1]
    assert manta.client.attempts(job.id)[0].number == 1
    assert (
        'manta_reports_total{kind="metrics"} 1.0'
        in httpx.get(f"{manta.url}/metrics", headers={"Authorization": "Bearer the-user's-own-token"}).text
    )


def test_a_report_of_an_attempt_that_is_over_is_409(start: Start) -> None:
    manta = start(cpus=8)
    job, order = manta.started_job()
    finish(manta, order)
    until(lambda: manta.client.get(job.id).state is JobState.SUCCEEDED)
    assert manta.report(order, metrics(9)).json()["code"] == "stale_attempt"


def test_a_report_that_is_none_names_its_field(start: Start) -> None:
    manta = start(cpus=8)
    job, order = manta.started_job()
    answer = manta.http.post(
        f"/jobs/{job.id}/attempts/1/reports",
        json={"reports": [{"kind": "metrics"}]},
        headers={"Authorization": f"Bearer {order.token}"},
    )
    assert answer.status_code == 422
    assert "/reports/0/generation" in {error["pointer"] for error in answer.json()["errors"]}

"""Reports are stored once, whatever the order they come in; the newest generation's figures stand."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.attempts import StaleAttempt
from service.reports import MAX_RANGES, MalformedReport, add, missing
from service.states import JobState
from service.store import Change, Store
from tests.service.fakes import Driver, Manta
from workers.attempt import Report, ReportBatch


def _figures(manta: Manta, job_id: str) -> list[tuple[int, int, dict[str, float]]]:
    metrics = manta.history.metrics(job_id).items
    return sorted((metric.step, metric.generation, metric.values) for metric in metrics)


def test_a_batch_that_is_sent_twice_changes_nothing(manta: Manta) -> None:
    job_id, driver = manta.started()
    batch = [
        driver.report("phase", phase="training", done=1, total=9, unit="steps"),
        driver.report("metrics", step=1, values={"loss": 2.0}),
        driver.report("event", type="worker_died", message="rank 1 died", pid=5),
        driver.report("worker", state="started", pid=7, node="n1"),
        driver.report("checkpoint", step=1, path="/c/1", bytes=10, state="committed"),
    ]

    def everything() -> list[object]:
        h = manta.history
        return [
            h.events(job_id).items,
            h.metrics(job_id).items,
            h.workers(job_id),
            h.checkpoints(job_id),
            manta.job(job_id),
        ]

    driver.send(*batch)
    once = everything()
    driver.send(*batch)
    driver.send(*reversed(batch), *batch)
    assert everything() == once


def test_half_a_batch_sent_again_with_more_adds_only_what_is_new(manta: Manta) -> None:
    job_id, driver = manta.started()
    events = [driver.report("event", type=f"e{n}") for n in range(4)]
    driver.send(*events[:2])
    driver.send(*events[1:])
    assert [each.type for each in manta.history.events(job_id).items if each.type.startswith("e")] == ["e0", "e1", "e2", "e3"]


def test_of_a_repeated_step_the_newest_generation_stands_and_readers_see_it_again(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.send(*(driver.report("metrics", step=step, values={"loss": 1.0, "lr": 0.1}) for step in (1, 2, 3)))
    last = manta.history.metrics(job_id).items[-1].id
    driver.send(driver.report("metrics", generation=1, step=3, values={"loss": 9.0}))
    (again,) = manta.history.metrics_after(job_id, last)
    assert (again.step, again.generation, again.values) == (3, 1, {"loss": 9.0})
    late = driver.report("metrics", generation=0, step=3, values={"loss": 5.0})
    driver.send(late)
    assert _figures(manta, job_id)[-1] == (3, 1, {"loss": 9.0})
    assert manta.history.metrics_after(job_id, again.id) == []


def test_figures_of_one_step_that_come_apart_are_put_together(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.send(driver.report("metrics", step=1, values={"loss": 1.0}))
    driver.send(driver.report("metrics", step=1, values={"eval_loss": 2.0}))
    assert _figures(manta, job_id) == [(1, 0, {"loss": 1.0, "eval_loss": 2.0})]


def _reports() -> st.SearchStrategy[list[Report]]:
    """What several reporters may say of a few steps: every (generation, rank, sequence) once."""
    one = st.tuples(
        st.integers(0, 2),
        st.integers(0, 1),
        st.integers(1, 12),
        st.integers(1, 3),
        st.dictionaries(st.sampled_from("abc"), st.integers(0, 9).map(float), min_size=1),
    )
    unique = st.lists(one, max_size=14, unique_by=lambda each: each[:3])
    return unique.map(
        lambda rows: [
            Report(generation=g, rank=r, sequence=s, kind="metrics", time=1.0, data={"step": step, "values": values})
            for g, r, s, step, values in rows
        ]
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_and_any_repetition_of_batches_gives_the_same_metrics(
    data: st.DataObject, sqlite_store: Store, tmp_path: Path
) -> None:
    reports = data.draw(_reports())
    rest = data.draw(st.permutations(reports))
    manta = Manta(sqlite_store, tmp_path, cpus=1e9)
    (first, one), (second, other) = manta.started("first"), manta.started("second")
    one.send(*reports)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        batch, rest = rest[:size], rest[size:]
        for _ in range(data.draw(st.integers(1, 2))):
            other.send(*batch)
    assert _figures(manta, first) == _figures(manta, second)
    assert manta.job(first).restarts == manta.job(second).restarts
    manta.jobs.cancel(first)
    manta.jobs.cancel(second)
    manta.pass_time(1)


@given(st.lists(st.sets(st.integers(0, 40))))
def test_ranges_hold_exactly_what_was_added(batches: list[set[int]]) -> None:
    received: list[list[int]] = []
    for batch in batches:
        received = add(received, batch)
    everything = set().union(*batches)
    assert {n for n in range(42) if not missing(received, n)} == everything
    assert all(low <= high for low, high in received)
    assert all(one[1] + 1 < other[0] for one, other in pairwise(received))


def test_gaps_without_end_do_not_fill_the_store() -> None:
    received = add([], range(0, 10 * MAX_RANGES, 2))
    assert len(received) == MAX_RANGES
    assert not missing(received, 1)
    assert missing(received, 10 * MAX_RANGES - 3)


def test_the_first_training_report_makes_a_job_running(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.send(driver.report("phase", rank=-1, phase="shards", done=3, total=3, unit="shards", reused=True))
    assert manta.job(job_id).state is JobState.PREPARING
    driver.trains(1)
    job = manta.job(job_id)
    assert (job.state, job.step, job.total_steps) == (JobState.RUNNING, 1, 100)
    assert [(phase.phase, phase.reused) for phase in job.progress] == [("shards", True), ("training", False)]


def test_rate_and_time_left_come_from_the_last_reports(manta: Manta) -> None:
    job_id, driver = manta.started()
    for step in range(1, 11):
        manta.clock.now += 0.5
        driver.trains(step)
    (training,) = manta.job(job_id).progress
    assert training.rate == pytest.approx(2.0)
    assert training.eta_seconds == pytest.approx(45.0)
    driver.ends("succeeded")
    manta.pass_time(1)
    (training,) = manta.job(job_id).progress
    assert (training.rate, training.eta_seconds) == (None, None)


def test_a_new_generation_s_progress_stands_though_it_is_behind(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.trains(37)
    driver.trains(21, generation=1)
    assert manta.job(job_id).step == 21
    driver.trains(38, generation=0)
    assert manta.job(job_id).step == 21


def test_generations_of_workers_are_counted_as_restarts(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.send(driver.report("event", generation=0, rank=-1, type="x"))
    for generation in (0, 0, 1, 1, 3):
        driver.send(driver.report("worker", generation=generation, state="started", pid=1))
    assert manta.job(job_id).restarts == 3
    assert manta.history.attempts(job_id)[0].generation == 3


def test_a_worker_s_row_goes_from_started_to_died_and_not_back(manta: Manta) -> None:
    job_id, driver = manta.started()
    born = driver.report("worker", rank=1, state="started", pid=42, node="n1")
    beat = driver.report("heartbeat", rank=1, step=7)
    died = driver.report("worker", rank=-1, state="died", **{"pid": 42})
    died = died.model_copy(update={"data": {**died.data, "rank": 1}})
    driver.send(beat, died, born)
    rows = {worker.rank: worker for worker in manta.history.workers(job_id)}
    assert (rows[1].state, rows[1].pid, rows[1].node, rows[1].step) == ("died", 42, "n1", 7)


def test_workers_that_nobody_heard_the_end_of_end_with_their_attempt(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.send(driver.report("worker", state="started", pid=42))
    driver.ends("succeeded")
    manta.pass_time(1)
    assert [worker.state for worker in manta.history.workers(job_id)] == ["ended"]


def test_a_checkpoint_is_committed_then_deleted_and_made_again(manta: Manta) -> None:
    job_id, driver = manta.started()
    committed = driver.report("checkpoint", step=20, path="/c/20", bytes=10, state="committed")
    deleted = driver.report("checkpoint", step=20, path="/c/20", bytes=10, state="deleted")
    driver.send(deleted)
    driver.send(committed)
    assert [each.state for each in manta.history.checkpoints(job_id)] == ["deleted"]
    driver.send(driver.report("checkpoint", generation=1, step=20, path="/c/20", bytes=11, state="committed"))
    assert [(each.state, each.bytes) for each in manta.history.checkpoints(job_id)] == [("committed", 11)]


def test_figures_and_words_that_no_database_holds_are_kept_readable(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.send(
        driver.report("metrics", step=1, values={"loss": math.nan, "grad_norm": math.inf}),
        driver.report("event", type="log", message="a\x00b", deep={"x": [math.inf, "c\x00"]}),
    )
    (metric,) = manta.history.metrics(job_id).items
    assert math.isnan(metric.values["loss"])
    assert metric.values["grad_norm"] == math.inf
    event = manta.history.events(job_id).items[-1]
    assert (event.message, event.data["deep"]) == ("a\ufffdb", {"x": ["Infinity", "c\ufffd"]})
    assert type(metric).model_validate_json(metric.model_dump_json()).values["grad_norm"] == math.inf


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("metrics", {"values": {}}),
        ("metrics", {"step": 1, "values": {"loss": "low"}}),
        ("metrics", {"step": 10**40, "values": {}}),
        ("phase", {"phase": "lunch", "done": 1, "total": None, "unit": ""}),
        ("worker", {"state": "asleep"}),
        ("checkpoint", {"step": 1}),
        ("ended", {"outcome": "maybe"}),
        ("event", {"type": ""}),
    ],
)
def test_a_report_without_its_fields_is_refused_with_the_whole_batch(small: Manta, kind: str, data: dict[str, object]) -> None:
    job_id, driver = small.started()
    good = driver.report("metrics", step=1, values={"loss": 1.0})
    bad = Report(generation=0, rank=0, sequence=99, kind=kind, time=1.0, data=data)  # type: ignore[arg-type]
    with pytest.raises(MalformedReport) as refused:
        driver.send(good, bad)
    assert refused.value.status == 422
    assert kind in refused.value.detail
    assert small.history.metrics(job_id).items == []


@pytest.mark.parametrize("time", [float("nan"), float("inf"), -1.0, 1e12])
def test_a_report_of_no_time_is_refused(small: Manta, time: float) -> None:
    _, driver = small.started()
    with pytest.raises(MalformedReport):
        driver.send(driver.report("heartbeat", step=1).model_copy(update={"time": time}))


def test_text_that_utf8_cannot_encode_is_stored_as_what_it_can(small: Manta) -> None:
    job_id, driver = small.started()
    driver.send(driver.report("event", type="said", message="a\ud800"))
    assert small.history.events(job_id).items[-1].model_dump_json().count("a?") == 1


def test_an_empty_batch_asks_what_is_wanted_and_wakes_nobody(small: Manta) -> None:
    job_id, driver = small.started()
    heard: list[Change] = []
    small.store.subscribe(heard.append)
    assert driver.send() == "running"
    driver.send(driver.report("heartbeat", step=1))
    driver.send(driver.report("ended", outcome="succeeded"))
    assert heard == [Change(job_id, lifecycle=False), Change(job_id, lifecycle=True)]


def test_reports_of_a_deleted_job_are_stale(manta: Manta) -> None:
    job_id, driver = manta.started()
    manta.jobs.cancel(job_id)
    manta.pass_time(2)
    manta.jobs.delete(job_id)
    with pytest.raises(StaleAttempt):
        manta.reports.ingest(job_id, 1, driver.order.token, ReportBatch(reports=[]))


def test_metrics_page_forward_in_the_order_of_writing(manta: Manta) -> None:
    job_id, driver = manta.started()
    driver.send(*(driver.report("metrics", step=step, values={"loss": 1.0}) for step in range(1, 8)))
    steps, cursor = [], None
    while True:
        page = manta.history.metrics(job_id, cursor=cursor, limit=3)
        steps += [metric.step for metric in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert steps == list(range(1, 8))


def test_a_driver_reports_beside_its_ranks(manta: Manta) -> None:
    job_id, driver = manta.started()
    same = [Report(generation=0, rank=rank, sequence=1, kind="event", time=1.0, data={"type": "hello"}) for rank in (-1, 0, 1)]
    driver.send(*same)
    assert manta.event_types(job_id).count("hello") == 3
    assert isinstance(driver, Driver)

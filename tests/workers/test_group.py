"""What the driver makes of its worker group: who died, what it cost, what is tried again, and what the user is told.

Ray is not running here: the callbacks are called as Ray's controller calls them.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from torch.distributed import DistBackendError, DistStoreError

from data.errors import NotEnoughData
from workers import group
from workers.attempt import Order, Report, ReportBatch
from workers.compat_ray import ControllerError, WorkerGroupError
from workers.group import GroupOutcome, WorkersFailed, _Watch
from workers.rank import FailureNote, Progress, _is_lost_peer, attempt_dir, progress_path
from workers.reporter import Reporter


@dataclass
class Stage:
    """Two workers of one generation, a clock, and the service's ears."""

    order: Order
    watch: _Watch
    reporter: Reporter
    heard: list[Report] = field(default_factory=list)
    now: float = 1000.0
    gone: list[int] = field(default_factory=list)

    def start(self) -> None:
        self.watch.starts.generation += 1
        workers = [
            SimpleNamespace(
                rank=rank,
                distributed_context=SimpleNamespace(world_rank=rank),
                metadata=SimpleNamespace(pid=100 + rank, node_id="node-a", hostname="host-a"),
            )
            for rank in range(2)
        ]
        self.watch.after_worker_group_training_start(SimpleNamespace(get_workers=lambda: workers))

    def steps(self, rank: int, first: int, last: int, *, at: float) -> None:
        progress = Progress(self.watch.starts.generation, rank, first, at - (last - first), last, at)
        progress_path(self.order, rank).write_text(json.dumps(asdict(progress)))

    def poll(self, errors: dict[int, BaseException] | None = None) -> None:
        self.watch.after_worker_group_poll_status(SimpleNamespace(errors=errors or {}))

    def note(self, rank: int, **fields: Any) -> FailureNote:
        note = FailureNote(
            generation=self.watch.starts.generation,
            rank=rank,
            node="node-a",
            host="host-a",
            pid=100 + rank,
            step=7,
            code="worker_failed",
            detail="RuntimeError: boom",
            pointer=None,
            retry=False,
            log_tail=["last words"],
            time=self.now,
        )
        note = replace(note, **fields)
        (attempt_dir(self.order) / f"failure-{note.generation}-{rank}.json").write_text(json.dumps(asdict(note)))
        return note

    def events(self) -> list[dict[str, Any]]:
        self.reporter.pump()
        return [report.data for report in self.heard if report.kind == "event"]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    order = Order(
        job_id="j1",
        job_name="demo",
        kind="train",
        attempt=1,
        token="t",
        service_url="http://service",
        spec={},
        job_dir=tmp_path,
        prepared_dir=tmp_path,
    )
    attempt_dir(order).mkdir(parents=True)

    def hear(request: httpx.Request) -> httpx.Response:
        stage.heard.extend(ReportBatch.model_validate_json(request.content).reports)
        return httpx.Response(200, json={"desired": "running"})

    reporter = Reporter(order, 0, -1, tmp_path / "spool", transport=httpx.MockTransport(hear), start=False)

    def pause(seconds: float) -> None:
        stage.now += seconds

    stage = Stage(order, _Watch(order, reporter, clock=lambda: stage.now, pause=pause), reporter)
    monkeypatch.setattr(group, "_gone", lambda workers: stage.gone)
    stage.start()
    return stage


def died() -> BaseException:
    return WorkerHealthCheckFailedError("the actor is dead", failure=RayActorError())


def failure(errors: dict[int, Any]) -> WorkerGroupError:
    return WorkerGroupError("workers failed", errors)


def test_the_report_of_a_death_names_the_worker_and_its_last_step(stage: Stage) -> None:
    stage.steps(0, 1, 8, at=999.0)
    stage.steps(1, 1, 7, at=998.0)
    stage.poll({1: died()})
    (event,) = stage.events()
    assert event["type"] == "worker_died"
    assert {key: event[key] for key in ("rank", "pid", "node", "host", "step", "generation")} == {
        "rank": 1,
        "pid": 101,
        "node": "node-a",
        "host": "host-a",
        "step": 7,
        "generation": 0,
    }
    assert [(r.data["state"], r.data["rank"]) for r in stage.heard if r.kind == "worker"] == [("died", 1)]


def test_the_survivor_whose_connection_broke_is_not_the_one_that_died(stage: Stage) -> None:
    stage.gone = [1]
    stage.poll({0: RuntimeError("[gloo] Connection closed by peer")})
    assert [event["rank"] for event in stage.events()] == [1]


def test_the_first_step_of_the_next_generation_says_what_the_death_cost(stage: Stage) -> None:
    stage.steps(0, 1, 27, at=999.0)
    stage.poll({1: died()})
    stage.start()
    stage.now = 1004.0
    stage.poll()
    assert [event["type"] for event in stage.events()] == ["worker_died"]
    stage.steps(0, 21, 23, at=1007.0)
    stage.poll()
    stage.poll()
    resumed = stage.events()[1:]
    assert [event["type"] for event in resumed] == ["training_resumed"]
    assert resumed[0]["step"] == 21
    assert resumed[0]["lost_steps"] == 7
    assert resumed[0]["cost_seconds"] == 1005.0 - 999.0
    assert resumed[0]["seconds_since_detection"] == 1005.0 - 1000.0
    assert resumed[0]["ranks"] == [1]


def test_a_death_before_the_first_step_costs_no_steps(stage: Stage) -> None:
    stage.poll({0: died()})
    stage.start()
    stage.steps(0, 1, 1, at=1003.0)
    stage.poll()
    assert stage.events()[-1]["lost_steps"] == 0


def test_a_death_is_tried_again(stage: Stage) -> None:
    stage.poll({1: died()})
    assert stage.watch.may_retry(failure({1: died()}))


def test_what_the_user_can_mend_is_not_tried_again_though_others_lost_their_connection(stage: Stage) -> None:
    stage.note(0, retry=True, detail="RuntimeError: [gloo] Connection closed by peer")
    stage.note(1, code="not_enough_data", detail="too few rows", pointer="/data_pipeline", step=None)
    error = failure({0: RuntimeError("gloo"), 1: NotEnoughData("too few rows")})
    stage.poll(error.worker_failures)
    assert not stage.watch.may_retry(error)
    told = stage.watch.explain(error, 3)
    assert (told.failure_code, told.detail, told.pointer) == ("not_enough_data", "too few rows", "/data_pipeline")
    assert told.report == {"rank": 1, "node": "node-a", "step": None, "log_tail": ["last words"]}


def test_the_one_that_began_is_waited_for(stage: Stage) -> None:
    stage.note(0, retry=True)
    error = failure({0: RuntimeError("gloo")})
    stage.poll(error.worker_failures)
    began = stage.now
    assert stage.watch.may_retry(error)  # rank 1 left no note in time: the network's fault
    assert 2.0 <= stage.now - began < 2.2


def test_an_exception_in_a_worker_reaches_the_user_with_rank_node_step_and_log(stage: Stage) -> None:
    stage.note(1)
    error = failure({1: RuntimeError("boom")})
    stage.poll(error.worker_failures)
    assert not stage.watch.may_retry(error)
    told = stage.watch.explain(error, 3)
    assert (told.failure_code, told.detail) == ("worker_failed", "RuntimeError: boom")
    assert told.report == {"rank": 1, "node": "node-a", "step": 7, "log_tail": ["last words"]}


def test_a_spent_budget_names_who_died_last(stage: Stage) -> None:
    stage.steps(0, 1, 5, at=999.0)
    stage.poll({1: died()})
    told = stage.watch.explain(failure({1: died()}), 3)
    assert told.failure_code == "worker_died"
    assert told.report["rank"] == 1
    assert told.report["step"] == 5
    assert "3 restarts" in told.detail


def test_a_worker_that_could_leave_no_note_is_known_by_its_exception(stage: Stage) -> None:
    error = failure({1: NotEnoughData("too few rows")})
    stage.poll(error.worker_failures)
    assert not stage.watch.may_retry(error)
    assert stage.watch.explain(error, 3).failure_code == "not_enough_data"


def test_a_group_that_never_started_is_said_so_whatever_died_before(stage: Stage) -> None:
    stage.poll({1: died()})
    stage.note(1, retry=True)
    told = stage.watch.explain(ControllerError(RuntimeError("no such module")), 3)
    assert isinstance(told, WorkersFailed)
    assert told.failure_code == "workers_not_started"
    assert "no such module" in told.detail


def test_workers_that_do_not_start_are_an_event_that_is_not_repeated(stage: Stage) -> None:
    stage.watch.not_started(RuntimeError("no room"))
    stage.watch.not_started(RuntimeError("no room"))
    stage.watch.not_started(RuntimeError("node lost"))
    assert [(e["type"], e["message"]) for e in stage.events()] == [
        ("workers_not_started", "RuntimeError: no room"),
        ("workers_not_started", "RuntimeError: node lost"),
    ]


def test_a_death_after_the_last_step_is_over_when_the_run_is(stage: Stage) -> None:
    stage.steps(0, 1, 27, at=999.0)
    stage.poll({1: died()})
    stage.start()
    stage.poll()
    stage.now = 1006.0
    stage.watch.finish(GroupOutcome("succeeded", 27))
    stage.watch.finish(GroupOutcome("succeeded", 27))
    (resumed,) = [event for event in stage.events() if event["type"] == "training_resumed"]
    assert (resumed["step"], resumed["lost_steps"], resumed["cost_seconds"]) == (27, 0, 7.0)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:2"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited"), True),
        (DistStoreError("Connection refused"), True),
        (ConnectionError("database connection lost"), False),
        (RuntimeError("peer review of the connection failed"), False),
        (ValueError("no gloo, no NCCL"), False),
    ],
)
def test_a_lost_peer_is_known_by_the_words_of_gloo_and_nccl(error: Exception, lost: bool) -> None:
    assert _is_lost_peer(error) is lost


def test_a_new_generation_adopts_what_the_old_one_had_not_sent(stage: Stage, tmp_path: Path) -> None:
    killed = Reporter(stage.order, 0, 1, tmp_path / "spool", start=False)
    killed.metrics(5, {"loss": 1.0})
    stage.start()
    stage.reporter.pump()
    assert [(r.generation, r.rank, r.data["step"]) for r in stage.heard if r.kind == "metrics"] == [(0, 1, 5)]

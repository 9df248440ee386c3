"""Studies over HTTP: what a journal says, as JSON."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.store import Store
from tests.api.conftest import Manta, Start
from tests.tuning.stories import told
from workers.attempt import Order, Report
from workers.reporter import Reporter

STORY, JOURNAL = told()


def report(first: int, lines: list[dict[str, Any]], sequence: int = 1) -> Report:
    return Report(generation=0, rank=-1, sequence=sequence, kind="journal", time=1.0, data={"first": first, "lines": lines})


@pytest.fixture
def manta(start: Start) -> Manta:
    return start(cpus=8)


@pytest.fixture
def study(manta: Manta) -> str:
    """The id of a study whose driver has told all of the story."""
    answer = manta.http.post("/studies", json=STORY)
    assert answer.status_code == 201, answer.text
    job_id: str = answer.json()["id"]
    assert manta.launcher.submitted.wait(20)
    order = Order.model_validate_json((manta.settings.jobs_dir / job_id / "attempts" / "1" / "order.json").read_bytes())
    half = len(JOURNAL) // 2
    assert manta.report(order, report(0, JOURNAL[:half])).status_code == 200
    manta.client.study(job_id)  # what was seen once is read on from there
    assert manta.report(order, report(half, JOURNAL[half:], sequence=2)).status_code == 200
    return job_id


def test_a_study_shows_its_best_trial_its_cost_and_what_matters(manta: Manta, study: str) -> None:
    view = manta.client.study(study)
    assert view.job.id == study
    assert sum(view.trials.values()) == 12
    assert view.trials["pruned"] >= 1
    (best,) = view.best
    assert best.state == "complete"
    assert best.values["eval_loss"] == min(
        trial.values["eval_loss"] for trial in manta.client.trials(study).items if trial.values
    )
    assert view.steps_saved > 0
    assert view.steps + view.steps_saved == 12 * 30
    assert view.sampler == "random"


def test_trials_come_in_pages_by_number(manta: Manta, study: str) -> None:
    first = manta.client.trials(study, limit=5)
    second = manta.client.trials(study, limit=5, cursor=first.next_cursor)
    third = manta.client.trials(study, limit=5, cursor=second.next_cursor)
    assert [trial.number for page in (first, second, third) for trial in page.items] == list(range(12))
    assert third.next_cursor is None
    pruned = next(trial for trial in first.items + second.items + third.items if trial.state == "pruned")
    assert pruned.values == {}
    assert pruned.curve
    assert pruned.reason is not None


def test_the_job_of_a_trial_could_be_submitted(manta: Manta, study: str) -> None:
    best = manta.client.study(study).best[0]
    job = manta.client.trial_job(study, best.number)
    assert job["training"]["learning_rate"] == best.point["training.learning_rate"]
    assert manta.client.submit({"name": "best", **job}).state == "queued"


@pytest.mark.parametrize("name", ["history", "parallel", "slice", "intermediate", "timeline"])
def test_figures_are_plotlys(manta: Manta, study: str, name: str) -> None:
    figure = manta.client.figure(study, name)
    assert figure["data"]
    assert "layout" in figure


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/figures/histogram", 404, "figure_unknown"),
        ("/figures/pareto", 404, "figure_unknown"),
        ("/figures/importances", 409, "too_few_trials"),
        ("/trials/99/job", 404, "trial_not_found"),
        ("/trials?cursor=nonsense", 422, "invalid_cursor"),
    ],
)
def test_what_is_not_there_says_so(manta: Manta, study: str, path: str, status: int, code: str) -> None:
    answer = manta.http.get(f"/studies/{study}{path}")
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_the_export_is_the_journal(manta: Manta, study: str) -> None:
    assert list(manta.client.journal(study)) == JOURNAL


def test_a_trial_that_is_a_job_says_which(manta: Manta) -> None:
    study = manta.http.post("/studies", json=STORY | {"trials": "jobs"}).json()["id"]
    assert manta.launcher.submitted.wait(20)
    order = Order.model_validate_json((manta.settings.jobs_dir / study / "attempts" / "1" / "order.json").read_bytes())
    assert manta.report(order, report(0, JOURNAL)).status_code == 200
    (best,) = manta.client.study(study).best
    assert best.job_id is None
    url, headers = f"/jobs/{study}/attempts/1/children", {"Authorization": f"Bearer {order.token}"}
    jobs = [
        manta.http.put(f"{url}/{number}", json=manta.client.trial_job(study, number), headers=headers).json()["job_id"]
        for number in range(12)
    ]
    assert [trial.job_id for trial in manta.client.trials(study).items] == jobs
    assert [trial.job_id for trial in manta.client.study(study).best] == [jobs[best.number]]
    assert [trial["job_id"] for trial in manta.http.get(f"/studies/{study}/best").json()] == [jobs[best.number]]


def test_a_store_that_is_gone_in_mid_study_is_said_and_what_the_driver_had_to_say_is_there_when_it_is_back(
    manta: Manta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = manta.http.post("/studies", json=STORY).json()["id"]
    assert manta.launcher.submitted.wait(20)
    order = Order.model_validate_json((manta.settings.jobs_dir / study / "attempts" / "1" / "order.json").read_bytes())
    reporter = Reporter(order, 0, -1, tmp_path / "spool", start=False)
    half = len(JOURNAL) // 2
    reporter.journal(0, JOURNAL[:half])
    reporter.pump()

    @contextmanager
    def gone(store: Store) -> Iterator[Session]:
        raise OperationalError("SELECT 1", {}, OSError("disk I/O error"))
        yield

    with monkeypatch.context() as fault:
        fault.setattr(Store, "read", gone)
        fault.setattr(Store, "write", gone)
        for path in ("", "/trials", "/best", "/figures/history"):
            answer = manta.http.get(f"/studies/{study}{path}")
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        reporter.journal(half, JOURNAL[half:])
        reporter.pump()
        assert not reporter.flush(0)
    reporter.pump()
    assert reporter.close()
    assert list(manta.client.journal(study)) == JOURNAL
    assert sum(manta.client.study(study).trials.values()) == 12


def test_a_study_that_has_not_begun_has_no_trials(manta: Manta) -> None:
    study = manta.http.post("/studies", json=STORY).json()["id"]
    view = manta.client.study(study)
    assert (view.best, view.trials, view.steps) == ([], {}, 0)
    assert manta.client.trials(study).items == []


def test_a_job_of_another_kind_is_no_study(manta: Manta) -> None:
    job = manta.job()
    assert manta.http.get(f"/studies/{job.id}").status_code == 404
    assert manta.http.post(f"/studies/{job.id}:cancel").status_code == 404
    answer = manta.http.post("/studies", json={"name": "tiny"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/kind")


def test_studies_are_listed_and_obey_as_jobs_do(manta: Manta, study: str) -> None:
    manta.job()
    assert [job["id"] for job in manta.http.get("/studies").json()["items"]] == [study]
    assert manta.http.post(f"/studies/{study}:pause").json()["desired"] == "paused"
    assert manta.http.post(f"/studies/{study}:cancel").json()["desired"] == "cancelled"


def test_a_study_that_waits_is_paused_and_resumed(start: Start) -> None:
    manta = start(cpus=0)
    study = manta.http.post("/studies", json=STORY).json()["id"]
    states = [manta.http.post(f"/studies/{study}:{command}").json()["state"] for command in ("pause", "resume", "cancel")]
    assert states == ["paused", "queued", "cancelled"]
    refused = manta.http.post(f"/studies/{study}:resume")
    assert (refused.status_code, refused.json()["code"]) == (409, "illegal_transition")


def test_a_mistake_in_a_study_is_named_with_its_field(manta: Manta) -> None:
    wrong = STORY | {"space": {"training.learning_rat": {"type": "float", "low": 0, "high": 1}}}
    answer = manta.http.post("/studies", json=wrong)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"].startswith("/space")
    assert "did you mean learning_rate?" in error["detail"]
    elsewhere = STORY | {"constraints": ["training.steps > 0", "training.learning_rat < 1"], "points": [{}]}
    (error,) = manta.http.post("/studies", json=elsewhere).json()["errors"]
    assert error["pointer"] == "/constraints/1"
    assert "did you mean learning_rate?" in error["detail"]
    upside_down = STORY | {"space": {"training.learning_rate": {"type": "float", "low": 1, "high": 0.1}}}
    (error,) = manta.http.post("/studies", json=upside_down).json()["errors"]
    assert error["pointer"] == "/space/training.learning_rate/low"

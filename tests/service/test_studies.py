"""A study's journal reaches the next attempt whole, whatever became of the one before."""

from pathlib import Path
from typing import Any

import pytest

from service.models import JournalLine
from service.resolve import StudyExists
from service.spec import TuneJob
from service.states import IllegalTransition
from service.studies import PopulationEnded, Studies
from service.validation import SpecInvalid
from tests.service.fakes import Driver, Manta
from tests.tuning.stories import told
from workers.attempt import JOURNAL, WARM, Report

SPACE = {"training.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2}}
OTHER_SPACE = {"training.weight_decay": {"type": "float", "low": 0, "high": 1}}
LINES = [{"op_code": n, "reason": f"line {n}\x00"} for n in range(6)]


def submitted(manta: Manta) -> tuple[str, Driver]:
    job_id = manta.jobs.create(TuneJob.model_validate({"kind": "tune", "name": "study", "space": SPACE})).job.id
    manta.supervisor.tick()
    return job_id, manta.driver(job_id)


def handed(manta: Manta, job_id: str, attempt: int) -> list[str]:
    path = manta.jobs.directory(job_id) / "attempts" / str(attempt) / JOURNAL
    return path.read_text().splitlines()


def spooled(manta: Manta, job_id: str, report: Report) -> None:
    spool = manta.jobs.directory(job_id) / "attempts" / "1" / "spool"
    spool.mkdir(parents=True, exist_ok=True)
    (spool / "g0-r-1.jsonl").write_text(report.model_dump_json() + "\n")


def journal(driver: Driver, first: int, lines: list[dict[str, Any]]) -> Report:
    return driver.report("journal", rank=-1, first=first, lines=lines)


def test_a_study_has_a_driver_of_its_own_that_begins_with_an_empty_journal(manta: Manta) -> None:
    job_id, driver = submitted(manta)
    path = manta.jobs.directory(job_id) / "attempts" / "1" / "order.json"
    assert manta.launcher.entrypoints[f"manta-{job_id}-1"].endswith(f"-m tuning.driver {path}")
    assert driver.order.spec["base"] == {}
    assert handed(manta, job_id, 1) == []


def test_trials_are_what_the_job_runs(manta: Manta) -> None:
    job_id, driver = submitted(manta)
    driver.send(driver.report("phase", rank=-1, phase="trials", done=3, total=50, unit="trials"))
    job = manta.job(job_id)
    assert job.state == "running"
    assert [(phase.phase, phase.done, phase.total) for phase in job.progress] == [("trials", 3, 50)]


def test_lines_are_stored_once_and_handed_to_the_next_attempt_in_order(manta: Manta) -> None:
    job_id, driver = submitted(manta)
    first, second = journal(driver, 0, LINES[:2]), journal(driver, 2, LINES[2:4])
    driver.send(first)
    driver.send(first, second)
    manta.jobs.pause(job_id)
    driver.ends("paused")
    manta.pass_time(1)
    manta.jobs.resume(job_id)
    manta.pass_time(1)
    assert len(handed(manta, job_id, 2)) == 4
    assert all(f'"op_code": {n}' in line for n, line in enumerate(handed(manta, job_id, 2)))


def test_what_a_killed_driver_had_not_sent_is_handed_over(manta: Manta) -> None:
    job_id, driver = submitted(manta)
    driver.send(journal(driver, 0, LINES[:3]))
    spooled(manta, job_id, journal(driver, 3, LINES[3:]))
    manta.launcher.states[f"manta-{job_id}-1"] = "failed"
    manta.pass_time(2)
    assert manta.job(job_id).attempt == 2
    assert len(handed(manta, job_id, 2)) == 6


def test_what_was_left_by_an_attempt_that_was_given_up_unseen_is_handed_over(manta: Manta) -> None:
    job_id, driver = submitted(manta)
    driver.send(journal(driver, 0, LINES[:3]))
    manta.launcher.away = True
    manta.pass_time(3600)
    spooled(manta, job_id, journal(driver, 3, LINES[3:]))
    manta.launcher.away = False
    manta.pass_time(60)
    assert manta.job(job_id).attempt == 2
    assert len(handed(manta, job_id, 2)) == 6


@pytest.mark.parametrize(
    ("fields", "pointer", "says"),
    [
        ({"points": [{"training.learning_rate": 5e-3}]}, "/points/0", "training.learning_rate < 0.001 does not hold"),
        (
            {"base": {"parallel_strategy": {"tensor_parallel": 2}}},
            "/base/parallel_strategy/tensor_parallel",
            "data parallelism",
        ),
    ],
)
def test_a_study_that_this_version_cannot_run_is_refused(manta: Manta, fields: dict[str, Any], pointer: str, says: str) -> None:
    given = {"name": "study", "space": SPACE, "constraints": ["training.learning_rate < 0.001"], **fields}
    with pytest.raises(SpecInvalid) as caught:
        manta.jobs.create(TuneJob.model_validate(given))
    assert caught.value.errors[0].pointer == pointer
    assert says in caught.value.errors[0].detail


def test_a_study_begins_with_the_journals_of_those_that_it_names(manta: Manta) -> None:
    job_id, driver = submitted(manta)
    driver.send(journal(driver, 0, LINES))
    driver.ends("succeeded")
    manta.pass_time(1)
    later = {"name": "later", "space": SPACE, "warm_start": ["study"]}
    second = manta.jobs.create(TuneJob.model_validate(later)).job
    assert second.spec["warm_start"] == [job_id]
    manta.pass_time(1)
    path = manta.jobs.directory(second.id) / "attempts" / "1" / f"{WARM}{job_id}.jsonl"
    assert len(path.read_text().splitlines()) == len(LINES)


def test_bases_may_differ_in_what_is_searched_and_in_what_does_not_train(manta: Manta) -> None:
    submitted(manta)
    base = {
        "training": {"learning_rate": 1e-3, "eval_interval": 5},
        "checkpoint": {"interval": 7},
        "monitoring": {"log_interval": 9},
    }
    later = {"name": "later", "base": base, "space": SPACE, "warm_start": ["study"]}
    assert manta.jobs.create(TuneJob.model_validate(later)).job.state == "queued"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"warm_start": ["nobody"]}, "there is no study nobody"),
        ({"warm_start": ["study"], "objectives": [{"metric": "seconds"}]}, "study study has another objective"),
        (
            {"warm_start": ["study"], "space": {"training.weight_decay": {"type": "float", "low": 0, "high": 1}}},
            "another space",
        ),
        (
            {"warm_start": ["study"], "base": {"training": {"steps": 7}}},
            r"study study has another base: training.steps is \w+ there and 7 here",
        ),
        (
            {"warm_start": ["study"], "base": {"data_pipeline": {"sources": [{"path": "other.txt"}]}}},
            "another base: data_pipeline.sources is ",
        ),
    ],
)
def test_a_study_that_cannot_be_begun_from_is_named(manta: Manta, fields: dict[str, Any], says: str) -> None:
    submitted(manta)
    with pytest.raises(SpecInvalid, match=says):
        manta.jobs.create(TuneJob.model_validate({"name": "later", "space": SPACE, **fields}))


def test_a_name_that_is_taken_says_by_whom(manta: Manta) -> None:
    job_id, _ = submitted(manta)
    with pytest.raises(StudyExists, match=f"there is a study study already \\({job_id}\\)"):
        submitted(manta)


def test_a_study_that_is_looked_at_after_every_line_is_seen_as_it_is(manta: Manta) -> None:
    story, lines = told()
    job_id = manta.jobs.create(TuneJob.model_validate(story)).job.id
    manta.supervisor.tick()
    driver, live = manta.driver(job_id), Studies(manta.store)
    for number, line in enumerate(lines):
        driver.send(journal(driver, number, [line]))
        live.trials(job_id)
    seen = live.trials(job_id).items
    assert seen == Studies(manta.store).trials(job_id).items
    assert [trial.number for trial in seen] == list(range(12))
    assert all(trial.state != "running" for trial in seen)


def test_a_study_that_has_ended_goes_on_with_more_budget(manta: Manta) -> None:
    studies = Studies(manta.store, clock=manta.clock)
    job_id, driver = submitted(manta)
    with pytest.raises(IllegalTransition, match="pause it first"):
        studies.extend(job_id, {"trials": 80})
    driver.send(journal(driver, 0, LINES))
    driver.ends("succeeded")
    manta.pass_time(1)
    refused: list[tuple[dict[str, int], str]] = [
        ({"trials": 10}, "/trials: 10 is less than the 50"),
        ({"trials": 0}, "/trials"),
        ({}, "no more than the budget that it has: 50 trials"),
        ({"trials": 50}, "no more than the budget that it has: 50 trials"),
        ({"steps": 10**6}, "no more than the budget that it has: 50 trials"),
    ]
    for budget, says in refused:
        with pytest.raises(SpecInvalid, match=says):
            studies.extend(job_id, budget)
    assert studies.extend(job_id, {"trials": 80}).state == "queued"
    manta.pass_time(1)
    assert manta.driver(job_id).order.spec["budget"] == {"trials": 80, "steps": None, "seconds": None}
    assert len(handed(manta, job_id, 2)) == len(LINES)


def test_a_population_is_given_more_budget_while_it_is_paused_and_none_once_its_members_have_ended(manta: Manta) -> None:
    studies = Studies(manta.store, clock=manta.clock)
    given = {
        "name": "population",
        "base": {"training": {"steps": 60, "eval_interval": 10}},
        "space": SPACE,
        "scheduler": {"type": "pbt", "interval": 10},
    }
    job_id = manta.jobs.create(TuneJob.model_validate(given)).job.id
    manta.supervisor.tick()
    manta.jobs.pause(job_id)
    manta.driver(job_id).ends("paused")
    manta.pass_time(1)
    assert studies.extend(job_id, {"trials": 80}).state == "paused"
    manta.jobs.resume(job_id)
    manta.pass_time(1)
    manta.driver(job_id).ends("succeeded")
    manta.pass_time(1)
    with pytest.raises(
        PopulationEnded, match="extended before that, while it is paused; after it, submit a new study"
    ) as caught:
        studies.extend(job_id, {"trials": 90})
    assert caught.value.pointer == "/scheduler/type"
    assert (manta.job(job_id).state, manta.job(job_id).spec["budget"]["trials"]) == ("succeeded", 80)


def test_a_journal_goes_with_its_job(manta: Manta, tmp_path: Path) -> None:
    job_id, driver = submitted(manta)
    driver.send(journal(driver, 0, LINES))
    driver.ends("succeeded")
    manta.pass_time(1)
    manta.jobs.delete(job_id)
    with manta.store.read() as session:
        assert session.query(JournalLine).count() == 0

"""A study that ran, as its journal tells it."""

from typing import Any

from optuna.storages import JournalStorage

from tests.tuning.fake_population import Disk, FakePopulation
from tests.tuning.fakes import FakeTrials, Recorder
from tuning.journal import ReportedJournal
from tuning.loop import Loop
from tuning.population_loop import PopulationLoop
from tuning.spec import StudySpec
from tuning.study import Study

SPACE = {
    "training.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "training.optimizer": {"type": "choice", "choices": ["adamw", "muon"]},
}


def told_of_a_population() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(job of kind tune, journal): four members that are compared five times."""
    given: dict[str, Any] = {
        "base": {"training": {"steps": 60, "eval_interval": 10}},
        "space": {"training.learning_rate": {"type": "float", "low": 1e-4, "high": 1.0, "log": True}},
        "scheduler": {"type": "pbt", "population": 4, "interval": 10},
    }
    recorder = Recorder()
    study = Study(StudySpec.model_validate(given), JournalStorage(ReportedJournal([], recorder)))
    PopulationLoop(study, FakePopulation(Disk()), pulse=lambda: None, clock=lambda: 0.0).run()
    return {"kind": "tune", "name": "population", **given}, recorder.lines


def told(**fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(job of kind tune, journal)"""
    given: dict[str, Any] = {
        "base": {"training": {"steps": 30, "eval_interval": 10}},
        "space": SPACE,
        "sampler": "random",
        "scheduler": {"type": "asha", "grace_steps": 10, "reduction_factor": 2},
        "budget": {"trials": 12},
    } | fields
    recorder = Recorder()
    study = Study(StudySpec.model_validate(given), JournalStorage(ReportedJournal([], recorder)))

    def objective(job: Any, step: int) -> dict[str, float]:
        rate = float(job["training"]["learning_rate"])
        return {"eval_loss": abs(rate - 0.01) * 50 + 1 / step, "memory": 1e3 * rate}

    Loop(study, FakeTrials(objective), pulse=lambda: None, clock=lambda: 0.0).run()
    return {"kind": "tune", "name": "rates", **given}, recorder.lines

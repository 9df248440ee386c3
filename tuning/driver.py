"""The entry point of an attempt at a study: ``python -m tuning.driver ORDER_FILE``."""

import logging
import sys
import time
from pathlib import Path

from optuna.storages import JournalStorage

from data.files import key64
from tuning.children import ChildrenApi, ChildTrials
from tuning.journal import KnownJournal, ReportedJournal, read_lines
from tuning.loop import Loop
from tuning.pool import ActorTrials
from tuning.population_loop import PopulationLoop
from tuning.spec import StudySpec
from tuning.study import Study
from tuning.summary import summary
from tuning.trials import Trials
from workers.attempt import JOURNAL, WARM, Order, Phase
from workers.driver import carry_out, leave
from workers.early import worker_resources
from workers.preparation import prepared_data, stop_if_asked
from workers.rank import attempt_dir
from workers.reporter import Reporter
from workers.spec import TrainSpec

logger = logging.getLogger(__name__)


def run_study(order: Order, reporter: Reporter) -> str:
    spec = StudySpec.model_validate(order.spec)
    journal = ReportedJournal(read_lines(attempt_dir(order) / JOURNAL), reporter)
    study = Study(spec, JournalStorage(journal))

    for path in sorted(attempt_dir(order).glob(f"{WARM}*")):
        name = path.stem.removeprefix(WARM)
        study.adopt(name, Study(spec, JournalStorage(KnownJournal(read_lines(path)))))

    trials = _jobs(order, study) if spec.trials_are_jobs else _actors(order, spec, reporter)

    def pulse() -> None:
        stop_if_asked(reporter)
        ended = len(study.own) - len(study.running)
        reporter.phase(Phase.TRIALS, ended, spec.budget.trials, "trials")

    try:
        if spec.scheduler.type == "pbt" and isinstance(trials, ActorTrials):
            PopulationLoop(study, trials, pulse, time.monotonic).run()
        else:
            Loop(study, trials, pulse, time.monotonic).run()
    finally:
        trials.close()
    reporter.result(summary(study))
    return "succeeded"


def _actors(order: Order, spec: StudySpec, reporter: Reporter) -> Trials:
    def prepared(job: TrainSpec) -> Path:
        """Trials may search over the data too; each data set is prepared once."""
        name = f"{key64(job.data_pipeline.model_dump_json() + job.tokenizer.model_dump_json()):016x}"
        return prepared_data(order, job.data_pipeline, job.tokenizer, reporter, record=f"prepared-{name}.json")[0]

    prepared(spec.base)
    return ActorTrials(spec.concurrent_trials, worker_resources(spec.base), order.job_dir, order.attempt, prepared)


def _jobs(order: Order, study: Study) -> Trials:
    running = [trial.number for trial in study.running]
    return ChildTrials(ChildrenApi(order), study.spec.concurrent_trials, running)


if __name__ == "__main__":
    leave(carry_out(sys.argv[1:], run_study))

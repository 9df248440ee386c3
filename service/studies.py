"""Studies: jobs of kind ``tune``, read out of their journals."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from data.errors import MantaError
from service import cursors
from service.jobs import MAX_PAGE, find_job, job_view
from service.journal import Line, read_journal
from service.models import Job
from service.moves import USER, move
from service.spec import TuneJob
from service.states import FINAL, IllegalTransition, JobState, Reason
from service.store import JobNotFound, Store, lock_job, wake_queue
from service.validation import FieldError, SpecInvalid
from service.views import JobView, Page
from tuning.spec import Budget
from tuning.views import StudySummary, TrialView
from workers.attempt import Desired

if TYPE_CHECKING:
    from tuning.journal import KnownJournal
    from tuning.study import Study

KEPT = 16
"""Studies whose journals stay replayed, so that a look at a live one reads only what is new."""


class TrialNotFound(MantaError):
    """A study has no trial of that number."""

    code = "trial_not_found"
    status = 404


class PopulationEnded(MantaError):
    """The members of a population have trained to their end: more budget would begin none."""

    code = "population_ended"
    status = 409


class StudyView(StudySummary):
    job: JobView
    importances: dict[str, float]
    """The share of each parameter in what tells good trials from others; empty while there are too few."""


class Studies:
    """Every method raises ``JobNotFound``. Optuna is imported when the first study is looked at."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def require(self, job_id: str) -> None:
        with self._store.read() as session:
            _find(session, job_id)

    def get(self, job_id: str) -> StudyView:
        from tuning.figures import importances
        from tuning.summary import summary

        with self._lock:
            job, study = self._study(job_id)
            shown = summary(study)
            shown.best = self._with_jobs(job_id, shown.best)
            return StudyView(job=job_view(job), importances=importances(study), **dict(shown))

    def trials(self, job_id: str, *, cursor: str | None = None, limit: int = 200) -> Page[TrialView]:
        """By number. Raises ``InvalidCursor``."""
        from tuning.summary import trial_view

        first = cursors.decode("trials", cursor) if cursor is not None else 0
        end = first + max(1, min(limit, MAX_PAGE))
        with self._lock:
            _, study = self._study(job_id)
            items = self._with_jobs(job_id, [trial_view(study, trial) for trial in study.trials[first:end]])
            more = cursors.encode("trials", end) if len(study.trials) > end else None
        return Page[TrialView](items=items, next_cursor=more)

    def best(self, job_id: str) -> list[TrialView]:
        from tuning.summary import summary

        with self._lock:
            return self._with_jobs(job_id, summary(self._study(job_id)[1]).best)

    def job_of(self, job_id: str, number: int) -> dict[str, Any]:
        """A trial's point put into the study's base: a training job. Raises ``TrialNotFound``."""
        with self._lock:
            _, study = self._study(job_id)
            if number >= len(study.trials):
                raise TrialNotFound(f"study {job_id} has {len(study.trials)} trials, and none of number {number}")
            return study.space.document(study.point(number))

    def figure(self, job_id: str, name: str) -> dict[str, Any]:
        """Plotly's JSON. Raises ``FigureUnknown`` and ``TooFewTrials``."""
        from tuning.figures import figure

        with self._lock:
            return figure(self._study(job_id)[1], name)

    def extend(self, job_id: str, budget: Mapping[str, Any]) -> JobView:
        """Give a study that does not run more budget. One that has ended is queued again, and goes on where it was.

        Raises ``IllegalTransition`` while it runs, ``SpecInvalid`` where the budget is none, or no larger,
        ``PopulationEnded``.
        """
        with self._store.write() as session:
            _find(session, job_id)
            job = lock_job(session, job_id)
            if job.state not in (*FINAL, JobState.PAUSED):
                raise IllegalTransition(f"study {job.id} is {job.state}; pause it first")
            if job.state is JobState.SUCCEEDED and job.spec["scheduler"]["type"] == "pbt":
                raise PopulationEnded(
                    f"the members of {job.name} have trained to their end, and more budget would begin none. A population is"
                    " extended before that, while it is paused; after it, submit a new study, with a larger population, more"
                    " training.steps, or the best point among its points",
                    pointer="/scheduler/type",
                )
            try:
                more = Budget.model_validate({**job.spec["budget"], **budget})
            except ValidationError as error:
                raise SpecInvalid(
                    [FieldError("/" + "/".join(map(str, each["loc"])), each["msg"]) for each in error.errors()]
                ) from None
            _require_more(job.spec["budget"], more)
            job.spec = {**job.spec, "budget": more.model_dump(mode="json")}
            if job.state in FINAL:
                job.desired, job.losses, job.failure = Desired.RUNNING, 0, None
                move(session, job, JobState.QUEUED, Reason.USER, USER, self._clock(), "more budget")
                wake_queue(session)
            view = job_view(job)
        self._store.changed(job_id, lifecycle=True)
        return view

    def journal(self, job_id: str) -> list[Line]:
        """Optuna's journal of the study, as it was written."""
        with self._store.read() as session:
            _find(session, job_id)
            return read_journal(session, job_id)

    def _with_jobs(self, job_id: str, trials: Sequence[TrialView]) -> list[TrialView]:
        """The trials of a study, each with the job that trains it."""
        numbers = [trial.number for trial in trials]
        of_trials = select(Job.trial, Job.id).where(Job.parent == job_id, Job.trial.in_(numbers))
        with self._store.read() as session:
            jobs = {row.trial: row.id for row in session.execute(of_trials)}
        return [trial.model_copy(update={"job_id": jobs.get(trial.number)}) for trial in trials]

    def _study(self, job_id: str) -> "tuple[Job, Study]":
        from optuna.storages import JournalStorage

        from tuning.journal import KnownJournal
        from tuning.study import Study

        kept = self._kept.get(job_id)
        with self._store.read() as session:
            job = _find(session, job_id)
            new = read_journal(session, job_id, first=len(kept.journal) if kept else 0)
        if kept is not None and kept.spec == job.spec:
            kept.journal.append_logs(new)
            self._kept.move_to_end(job_id)
            return job, kept.study
        journal = KnownJournal([*(kept.journal.read_logs(0) if kept else ()), *new])
        study = Study(TuneJob.model_validate(job.spec), JournalStorage(journal))
        if new or kept:  # else what Optuna began the study with is its own word, not the driver's
            self._kept[job_id] = _Kept(job.spec, journal, study)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return job, study


def _require_more(before: Mapping[str, Any], more: Budget) -> None:
    """A limit that the study did not have gives it nothing. Raises ``SpecInvalid``."""
    now = {name: (limit, getattr(more, name)) for name, limit in before.items() if limit is not None}
    for name, (limit, new) in now.items():
        if new is not None and new < limit:
            raise SpecInvalid([FieldError(f"/{name}", f"{new} is less than the {limit} that it has")])
    if all(limit == new for limit, new in now.values()):
        has = ", ".join(f"{limit} {name}" for name, (limit, _) in now.items())
        raise SpecInvalid([FieldError("", f"that is no more than the budget that it has: {has}")])


@dataclass(frozen=True)
class _Kept:
    spec: dict[str, Any]
    journal: "KnownJournal"
    study: "Study"


def _find(session: Session, job_id: str) -> Job:
    job = find_job(session, job_id)
    if job.kind != "tune":
        raise JobNotFound(f"job {job_id} is no study: it is of kind {job.kind}")
    return job

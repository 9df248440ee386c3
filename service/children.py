"""Trials that are jobs of their own: what the driver of a study may do with them, by its attempt's token and no other.

There is one job a trial, known by the study's id and the trial's number, so a driver may ask for anything again.
"""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service import wishes
from service.attempts import newest_attempt
from service.history import History
from service.jobs import add_job, new_job
from service.models import Job
from service.moves import STUDY
from service.spec import TrainJob
from service.states import FINAL, IllegalTransition, JobState, Reason
from service.store import JobNotFound, Store, wake_queue
from service.validation import check_plan, parse_spec
from tuning.views import ChildView, Figures
from workers.attempt import Desired

LOOK_FIGURES = 500
"""What one look brings at most."""
NAME_CHARACTERS = 47


class Children:
    """Every method raises ``StaleAttempt`` and ``InvalidToken``; where a trial is named that has no job, ``JobNotFound``."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._history = History(store)

    def begin(self, study_id: str, attempt: int, token: str, trial: int, given: Mapping[str, Any]) -> ChildView:
        """The trial's job, made now if there is none. One that the study has paused or cancelled is queued again; what its user
        has paused or cancelled stays so.

        Args:
            given: a training job, as a user would write it, without ``name`` and ``kind``.

        Raises:
            SpecInvalid: this version cannot run it.
            IllegalTransition: the study is not to run.
        """
        now = self._clock()
        with self._store.write() as session:
            study, _ = newest_attempt(session, study_id, attempt, token)
            if study.desired is not Desired.RUNNING:
                raise IllegalTransition(f"study {study_id} is to be {study.desired}; no trial begins")
            child = _find(session, study_id, trial)
            if child is None:
                spec = parse_spec({**given, "kind": "train", "name": child_name(study.name, trial)})
                assert isinstance(spec, TrainJob)
                check_plan(spec)
                child = new_job(spec, now, parent=study_id, trial=trial)
                add_job(session, child, STUDY)
            elif child.reason is not Reason.USER and child.state in (JobState.PAUSED, JobState.CANCELLED):
                wish = wishes.resume if child.state is JobState.PAUSED else wishes.retry
                wish(session, child, Reason.STUDY, now)
            wake_queue(session)
        self._store.changed(child.id, lifecycle=True)
        return _view(child, [])

    def look(self, study_id: str, attempt: int, token: str, trial: int, after: int) -> ChildView:
        """Its state, and its figures with an id above ``after``."""
        with self._store.read() as session:
            newest_attempt(session, study_id, attempt, token, hold=False)
            child = _required(session, study_id, trial, hold=False)
        # Figures after the state: those of a job that has ended are all there.
        new = self._history.metrics_after(child.id, after, LOOK_FIGURES)
        return _view(child, [Figures(id=each.id, step=each.step, values=each.values) for each in new])

    def cancel(self, study_id: str, attempt: int, token: str, trial: int) -> None:
        """Of one that has ended nothing is wanted any more."""
        with self._store.write() as session:
            newest_attempt(session, study_id, attempt, token)
            child = _required(session, study_id, trial)
            if child.state not in FINAL:
                wishes.cancel(session, child, Reason.STUDY, self._clock())
            wake_queue(session)
        self._store.changed(child.id, lifecycle=True)

    def keep(self, study_id: str, attempt: int, token: str, trials: Collection[int]) -> None:
        """Cancel the jobs of all other trials: an earlier driver may have died between a decision and the word to its job."""

        def unless_kept(session: Session, child: Job, reason: Reason, now: float) -> None:
            if child.trial not in trials:
                wishes.cancel(session, child, reason, now)

        with self._store.write() as session:
            newest_attempt(session, study_id, attempt, token)
            changed = wishes.of_children(session, study_id, unless_kept, self._clock())
            wake_queue(session)
        for each in changed:
            self._store.changed(each, lifecycle=True)


def child_name(study: str, trial: int) -> str:
    end = f"-{trial}"
    return study[: NAME_CHARACTERS - len(end)] + end


def _find(session: Session, study_id: str, trial: int, *, hold: bool = True) -> Job | None:
    query = select(Job).where(Job.parent == study_id, Job.trial == trial)
    return session.scalar(query.with_for_update(key_share=True) if hold else query)


def _required(session: Session, study_id: str, trial: int, *, hold: bool = True) -> Job:
    child = _find(session, study_id, trial, hold=hold)
    if child is None:
        raise JobNotFound(f"trial {trial} of study {study_id} has no job; it may have been deleted")
    return child


def _view(child: Job, figures: list[Figures]) -> ChildView:
    return ChildView(
        job_id=child.id,
        state=child.state,
        reason=child.reason,
        failure=child.failure,
        result=child.result,
        figures=figures,
    )

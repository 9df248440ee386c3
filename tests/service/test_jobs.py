"""What a user can do with jobs, on every database."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.cursors import InvalidCursor
from service.jobs import IdempotencyConflict, Jobs, TooManyJobs
from service.spec import DataJob, TrainJob
from service.states import IllegalTransition, JobState
from service.store import JobNotFound
from service.validation import FieldError, SpecInvalid
from tests.service.fakes import Manta
from workers.attempt import Desired
from workers.spec import ParallelSpec, TrainingSpec

S = JobState


def test_a_submitted_job_is_queued_with_its_whole_spec(manta: Manta) -> None:
    spec = TrainJob(name="first", training=TrainingSpec(steps=7))
    job = manta.jobs.create(spec).job
    assert (job.state, job.desired, job.reason, job.attempt) == (S.QUEUED, Desired.RUNNING, "submitted", 0)
    assert (job.total_steps, job.step, job.progress, job.restarts) == (7, None, [], 0)
    assert TrainJob.model_validate(job.spec) == spec
    assert manta.jobs.get(job.id) == job
    assert job.created_at.timestamp() == manta.clock.now


def test_a_job_that_this_version_cannot_run_is_refused_before_it_costs_anything(manta: Manta) -> None:
    with pytest.raises(SpecInvalid) as refused:
        manta.jobs.create(TrainJob(name="a", parallel_strategy=ParallelSpec(pipeline_parallel=4)))
    assert [error.pointer for error in refused.value.errors] == ["/parallel_strategy/pipeline_parallel"]
    assert manta.jobs.list().items == []


def test_a_key_makes_one_job_however_often_it_is_sent(manta: Manta) -> None:
    first = manta.jobs.create(TrainJob(name="a"), idempotency_key="k")
    again = manta.jobs.create(TrainJob(name="a"), idempotency_key="k")
    other = manta.jobs.create(TrainJob(name="a"), idempotency_key="other")
    assert (first.replayed, again.replayed, other.replayed) == (False, True, False)
    assert again.job == first.job
    assert other.job.id != first.job.id


def test_a_key_for_another_spec_is_a_conflict(manta: Manta) -> None:
    manta.jobs.create(TrainJob(name="a"), idempotency_key="k")
    with pytest.raises(IdempotencyConflict) as refused:
        manta.jobs.create(TrainJob(name="b"), idempotency_key="k")
    assert refused.value.status == 409
    assert len(manta.jobs.list().items) == 1


def test_a_repeated_submit_is_answered_though_its_spec_could_not_be_run_now(
    manta: Manta, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = manta.jobs.create(TrainJob(name="a"), idempotency_key="k")

    def refuses(_: object) -> None:
        raise SpecInvalid([FieldError("", "not by this version")])

    monkeypatch.setattr("service.jobs.check_plan", refuses)
    assert manta.jobs.create(TrainJob(name="a"), idempotency_key="k").job == first.job


def test_two_submits_with_one_key_at_the_same_moment_make_one_job(manta: Manta) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: manta.jobs.create(TrainJob(name="a"), idempotency_key="k"), range(8)))
    assert len({each.job.id for each in made}) == 1
    assert sum(not each.replayed for each in made) == 1


def test_too_many_unfinished_jobs_are_refused_until_one_ends(manta: Manta, tmp_path: Path) -> None:
    jobs = Jobs(manta.store, tmp_path, max_unfinished=2)
    first = jobs.create(TrainJob(name="a")).job
    jobs.create(TrainJob(name="b"))
    with pytest.raises(TooManyJobs) as refused:
        jobs.create(TrainJob(name="c"))
    assert refused.value.status == 429
    jobs.cancel(first.id)
    jobs.create(TrainJob(name="c"))


def test_the_list_is_newest_first_and_pages_without_gaps_or_repeats(manta: Manta) -> None:
    ids = [manta.submit(f"job-{n}") for n in range(7)]
    seen, cursor = [], None
    while True:
        page = manta.jobs.list(limit=3, cursor=cursor)
        seen += [job.id for job in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
        manta.submit("newcomer")  # what comes after the first page disturbs no later one
    assert seen == ids[::-1]


def test_the_list_filters_by_state_kind_and_name(manta: Manta) -> None:
    train, cancelled = manta.submit("a"), manta.submit("b")
    data = manta.jobs.create(DataJob(name="a")).job.id
    manta.jobs.cancel(cancelled)

    def found(**filters: object) -> list[str]:
        return [job.id for job in manta.jobs.list(**filters).items]

    assert found(state=S.CANCELLED) == [cancelled]
    assert found(kind="data") == [data]
    assert found(name="a") == [data, train]
    assert found(name="a", kind="train", state=S.QUEUED) == [train]
    assert manta.jobs.count_by_state()[S.QUEUED] == 2


def test_a_cursor_of_another_list_is_refused(manta: Manta) -> None:
    job_id = manta.submit()
    for _ in range(3):
        manta.jobs.pause(job_id)
        manta.jobs.resume(job_id)
    cursor = manta.history.events(job_id, limit=1).next_cursor
    with pytest.raises(InvalidCursor):
        manta.jobs.list(cursor=cursor)
    with pytest.raises(InvalidCursor):
        manta.history.metrics(job_id, cursor="no cursor at all")


def test_a_job_that_is_not_there(manta: Manta) -> None:
    for ask in (
        manta.jobs.get,
        manta.jobs.cancel,
        manta.jobs.pause,
        manta.jobs.resume,
        manta.jobs.retry,
        manta.jobs.delete,
        manta.history.attempts,
        manta.history.workers,
        manta.history.events,
        manta.history.metrics,
        manta.history.checkpoints,
    ):
        with pytest.raises(JobNotFound) as refused:
            ask("nothere")
        assert refused.value.status == 404


def test_what_has_no_attempt_is_cancelled_at_once(manta: Manta) -> None:
    queued, paused = manta.submit(), manta.submit()
    manta.jobs.pause(paused)
    for job_id in (queued, paused):
        job = manta.jobs.cancel(job_id)
        assert (job.state, job.desired) == (S.CANCELLED, Desired.CANCELLED)
        assert job.ended_at is not None
        assert manta.jobs.cancel(job_id) == job


def test_a_queued_job_can_be_held_and_let_go(manta: Manta) -> None:
    job_id = manta.submit()
    assert manta.jobs.pause(job_id).state is S.PAUSED
    assert manta.jobs.pause(job_id).state is S.PAUSED
    manta.pass_time(5)
    assert manta.launcher.begun == []
    assert manta.jobs.resume(job_id).state is S.QUEUED


def test_operations_that_the_state_does_not_allow_change_nothing(manta: Manta) -> None:
    queued, cancelled = manta.submit(), manta.submit()
    manta.jobs.cancel(cancelled)
    for act, job_id in (
        (manta.jobs.resume, queued),
        (manta.jobs.retry, queued),
        (manta.jobs.delete, queued),
        (manta.jobs.pause, cancelled),
        (manta.jobs.resume, cancelled),
    ):
        before, events = manta.job(job_id), manta.event_types(job_id)
        with pytest.raises(IllegalTransition) as refused:
            act(job_id)
        assert refused.value.status == 409
        assert manta.job(job_id) == before
        assert manta.event_types(job_id) == events


def test_an_ended_job_is_deleted_with_its_directory_and_its_key(manta: Manta) -> None:
    job = manta.jobs.create(TrainJob(name="a"), idempotency_key="k").job
    directory = manta.jobs.directory(job.id)
    (directory / "checkpoints").mkdir(parents=True)
    manta.jobs.cancel(job.id)
    manta.jobs.delete(job.id)
    assert not directory.exists()
    with pytest.raises(JobNotFound):
        manta.jobs.get(job.id)
    assert not manta.jobs.create(TrainJob(name="b"), idempotency_key="k").replayed


def test_every_operation_is_an_event_with_its_actor(manta: Manta) -> None:
    job_id = manta.submit()
    manta.jobs.pause(job_id)
    manta.jobs.resume(job_id)
    manta.jobs.cancel(job_id)
    events = manta.history.events(job_id).items
    assert [event.type for event in events] == ["submitted", "state", "state", "state"]
    assert {event.actor for event in events} == {"user"}
    assert events[1].data == {"from": "queued", "to": "paused", "reason": "user"}
    assert [event.id for event in events] == sorted(event.id for event in events)


def test_jobs_changed_at_once_from_many_threads_do_not_block_each_other(manta: Manta) -> None:
    ids = [manta.submit(f"job-{n}") for n in range(8)]

    def play(job_id: str) -> JobState:
        for _ in range(5):
            manta.jobs.pause(job_id)
            manta.jobs.resume(job_id)
        return manta.jobs.cancel(job_id).state

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(play, ids)) == [S.CANCELLED] * 8

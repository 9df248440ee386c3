"""The transition table: what may become what, and why."""

from itertools import product

import pytest

from service.states import FINAL, LIVE, MOVES, IllegalTransition, JobState, Reason, check_move

S, R = JobState, Reason


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (S.QUEUED, S.PREPARING, R.STARTED),
        (S.PREPARING, S.RUNNING, R.TRAINING),
        (S.PREPARING, S.SUCCEEDED, R.COMPLETED),
        (S.RUNNING, S.SUCCEEDED, R.COMPLETED),
        (S.RUNNING, S.FAILED, R.WORKER_FAILED),
        (S.RUNNING, S.FAILED, R.ATTEMPTS_SPENT),
        (S.RUNNING, S.QUEUED, R.ATTEMPT_LOST),
        (S.PREPARING, S.QUEUED, R.ATTEMPT_LOST),
        (S.RUNNING, S.PAUSING, R.USER),
        (S.PAUSING, S.PAUSED, R.USER),
        (S.PAUSED, S.QUEUED, R.USER),
        (S.QUEUED, S.CANCELLED, R.USER),
        (S.PAUSED, S.CANCELLED, R.USER),
        (S.CANCELLING, S.CANCELLED, R.USER),
        (S.FAILED, S.QUEUED, R.USER),
        (S.CANCELLED, S.QUEUED, R.USER),
    ],
)
def test_a_move_of_the_table_is_allowed(old: S, new: S, reason: R) -> None:
    check_move(old, new, reason)


def test_every_other_move_raises() -> None:
    for old, new, reason in product(S, S, R):
        if reason in MOVES.get((old, new), ()):
            continue
        with pytest.raises(IllegalTransition) as refused:
            check_move(old, new, reason)
        assert (refused.value.code, refused.value.status) == ("illegal_transition", 409)


@pytest.mark.parametrize("state", sorted(LIVE - {S.CANCELLING}))
def test_every_live_job_can_be_cancelled_but_not_at_once(state: S) -> None:
    check_move(state, S.CANCELLING, R.USER)
    assert (state, S.CANCELLED) not in MOVES


def test_a_succeeded_job_stays_so() -> None:
    assert {to: why for (old, to), why in MOVES.items() if old is S.SUCCEEDED} == {S.QUEUED: {R.USER}}, (
        "more budget for a study"
    )


def test_a_final_state_is_left_by_its_user_alone_and_a_cancelled_one_by_its_study_too() -> None:
    left = {old: reasons for (old, _), reasons in MOVES.items() if old in FINAL}
    assert left == {S.SUCCEEDED: {R.USER}, S.FAILED: {R.USER}, S.CANCELLED: {R.USER, R.STUDY}}


def test_a_study_may_ask_of_its_trials_what_a_user_may() -> None:
    by_user = {move for move, reasons in MOVES.items() if R.USER in reasons}
    by_study = {move for move, reasons in MOVES.items() if R.STUDY in reasons}
    assert by_user - by_study == {(S.SUCCEEDED, S.QUEUED), (S.FAILED, S.QUEUED)}
    assert by_study <= by_user


def test_an_accepted_cancel_ends_as_cancelled() -> None:
    assert [new for old, new in MOVES if old is S.CANCELLING] == [S.CANCELLED]

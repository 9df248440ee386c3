"""The train loop alone: resuming, stopping, reporting."""

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from data.dataset import Batch
from data.errors import NotEnoughData, ShardError
from tests.workers.tiny import InjectedFault, Recorder, fail_at, run_training, tiny_spec
from workers.attempt import Desired
from workers.checkpoint import CheckpointStore
from workers.engine import Engine, StepResult
from workers.loop import Hooks, prefetch
from workers.mesh import Membership
from workers.timing import PARTS

ALONE = Membership()


def test_a_run_reports_every_step_and_a_summary(tiny_data: Path, tmp_path: Path) -> None:
    outcome, recorder = run_training(ALONE, tiny_spec(eval_interval=4), tiny_data, tmp_path)
    assert (outcome.kind, outcome.step) == ("succeeded", 6)
    assert list(recorder.losses) == recorder.beats == [1, 2, 3, 4, 5, 6]
    assert list(recorder.held_out) == [4, 6]
    summary = outcome.summary
    assert summary is not None
    assert summary == recorder.summary
    assert (summary.steps, summary.tokens) == (6, 6 * 4 * 32)
    assert summary.train_loss == recorder.losses[6]
    assert summary.eval_loss == recorder.held_out[6]
    assert summary.tokens_per_second > 0
    assert summary.mfu is not None
    assert len(summary.samples) == 3
    assert (Path(summary.checkpoint) / "manifest.json").is_file()


def test_a_run_that_died_goes_on_exactly_as_if_it_had_not(tiny_data: Path, tmp_path: Path) -> None:
    _, whole = run_training(ALONE, tiny_spec(), tiny_data, tmp_path / "whole")
    with pytest.raises(InjectedFault):
        run_training(ALONE, tiny_spec(), tiny_data, tmp_path / "broken", hooks=fail_at(0, 4, ALONE))
    outcome, rest = run_training(Membership(generation=1), tiny_spec(), tiny_data, tmp_path / "broken")
    assert rest.beats[0] == 3, "the newest checkpoint is of step 2"
    assert rest.losses == {step: loss for step, loss in whole.losses.items() if step >= 3}
    assert rest.summary is not None
    assert whole.summary is not None
    assert rest.summary.eval_loss == whole.summary.eval_loss
    assert rest.summary.samples == whole.summary.samples
    assert outcome.step == 6


def test_a_steps_time_is_all_since_the_step_before_but_evaluation(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("workers.loop.time.perf_counter", lambda: clock[0])

    def passes(seconds: float, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            clock[0] += seconds
            return method(*arguments, **named)

        return call

    monkeypatch.setattr(Engine, "train_step", passes(1.0, Engine.train_step))
    monkeypatch.setattr(Recorder, "heartbeat", passes(0.25, Recorder.heartbeat))
    monkeypatch.setattr(CheckpointStore, "save", passes(10.0, CheckpointStore.save))
    monkeypatch.setattr(Engine, "evaluate", passes(100.0, Engine.evaluate))
    _, recorder = run_training(ALONE, tiny_spec(eval_interval=4), tiny_data, tmp_path)
    # Reports follow each step, checkpoints steps 2 and 4, the evaluation step 4.
    assert recorder.seconds == {1: 1.0, 2: 1.25, 3: 11.25, 4: 1.25, 5: 11.25, 6: 1.25}


@pytest.mark.parametrize("fails", [False, True])
def test_garbage_is_collected_by_step_while_training_and_by_itself_afterwards(
    tiny_data: Path, tmp_path: Path, fails: bool
) -> None:
    automatic: list[bool] = []

    def look(step: int) -> None:
        automatic.append(gc.isenabled())
        if fails:
            raise InjectedFault

    with pytest.raises(InjectedFault) if fails else nullcontext():
        run_training(ALONE, tiny_spec(), tiny_data, tmp_path, hooks=Hooks(on_step=look))
    assert not any(automatic)
    assert automatic
    assert gc.isenabled()


def test_pause_checkpoints_at_that_step_and_resume_goes_on(tiny_data: Path, tmp_path: Path) -> None:
    _, whole = run_training(ALONE, tiny_spec(), tiny_data, tmp_path / "whole")
    paused, first = run_training(ALONE, tiny_spec(), tiny_data, tmp_path / "paused", wishes={2: Desired.PAUSED})
    assert (paused.kind, paused.step, paused.summary) == ("paused", 3, None)
    assert (tmp_path / "paused" / "step-00000003" / "manifest.json").is_file()
    resumed, second = run_training(ALONE, tiny_spec(), tiny_data, tmp_path / "paused")
    assert resumed.kind == "succeeded"
    assert first.losses | second.losses == whole.losses


def test_every_row_of_the_run_has_a_number_of_its_own_whatever_restarts_there_are(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, seen = Engine.train_step, []

    def watched(self: Engine, micro_batches: Sequence[Batch | None], *, signal: int = 0) -> StepResult:
        seen.extend(number for batch in micro_batches if batch is not None for number in batch.samples.tolist())
        return step(self, micro_batches, signal=signal)

    monkeypatch.setattr(Engine, "train_step", watched)
    run_training(ALONE, tiny_spec(), tiny_data, tmp_path, wishes={2: Desired.PAUSED})
    run_training(ALONE, tiny_spec(), tiny_data, tmp_path)
    assert seen == list(range(6 * 4))


def test_cancel_stops_at_the_next_step_boundary(tiny_data: Path, tmp_path: Path) -> None:
    outcome, recorder = run_training(ALONE, tiny_spec(), tiny_data, tmp_path, wishes={2: Desired.CANCELLED})
    assert (outcome.kind, outcome.step) == ("cancelled", 3)
    assert recorder.summary is None


def test_a_finished_run_only_evaluates_again(tiny_data: Path, tmp_path: Path) -> None:
    first, _ = run_training(ALONE, tiny_spec(), tiny_data, tmp_path)
    again, recorder = run_training(ALONE, tiny_spec(), tiny_data, tmp_path)
    assert recorder.losses == {}
    assert first.summary is not None
    assert again.summary is not None
    assert again.summary.eval_loss == first.summary.eval_loss
    assert again.summary.train_loss == first.summary.train_loss


def test_a_checkpoint_of_another_order_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    run_training(ALONE, tiny_spec(), tiny_data, tmp_path)
    with pytest.raises(ShardError, match="seed 0 then, 5 now"):
        run_training(ALONE, tiny_spec(seed=5), tiny_data, tmp_path)


def test_fewer_rows_than_one_batch_are_named(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(NotEnoughData) as caught:
        run_training(ALONE, tiny_spec(global_batch_size=100_000), tiny_data, tmp_path)
    assert caught.value.pointer == "/training/global_batch_size"


def test_prefetch_keeps_order_and_passes_errors_on() -> None:
    assert list(prefetch(lambda step: step * 10, range(3, 7))) == [30, 40, 50, 60]
    assert list(prefetch(lambda step: step, range(5, 5))) == []

    def broken(step: int) -> int:
        if step == 2:
            raise ValueError("row 2")
        return step

    items = prefetch(broken, range(5))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="row 2"):
        next(items)


def test_steps_are_timed_by_part_and_their_losses_are_the_same(tiny_data: Path, tmp_path: Path) -> None:
    def run(interval: int | None) -> Recorder:
        spec = tiny_spec()
        spec = spec.model_copy(update={"monitoring": spec.monitoring.model_copy(update={"timing_interval": interval})})
        return run_training(ALONE, spec, tiny_data, tmp_path / str(interval))[1]

    timed, plain = run(4), run(None)
    assert timed.losses == plain.losses
    assert (list(timed.parts), plain.parts) == ([4], {})
    assert set(timed.parts[4]) == {f"seconds_{part}" for part in PARTS}
    # What is not in the step itself is reports and the wait for data.
    assert 0 < sum(timed.parts[4].values()) <= timed.seconds[4]
    assert timed.summary is not None
    assert plain.summary is not None
    assert set(timed.summary.step_parts) == {*PARTS, "data_wait"}
    assert plain.summary.step_parts == {}


def test_what_is_asked_for_during_an_evaluation_is_done_before_the_next_step(tiny_data: Path, tmp_path: Path) -> None:
    outcome, _ = run_training(ALONE, tiny_spec(eval_interval=3), tiny_data, tmp_path, wishes={3: Desired.PAUSED})
    assert (outcome.kind, outcome.step) == ("paused", 3)
    newest = CheckpointStore(tmp_path).latest()
    assert newest is not None
    assert newest.step == 3

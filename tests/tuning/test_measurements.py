"""The figures of a trial that was interrupted are those of the whole."""

import json
import queue
import threading
from pathlib import Path

import pytest

from tests.tuning.tiny import job
from tests.workers.conftest import tiny_data as tiny_data
from tuning.measurements import Measurements
from tuning.trials import Ended, Measured, News
from tuning.worker import TrialRun, _Stop, _TrialReporter, train_trial
from workers.spec import TrainSpec


def begin(
    directory: Path, data: Path, begun: int, until: int | None = None, kill_at: int | None = None
) -> dict[str, float] | None:
    """What a trial came to that is let go on whenever it has measured, or is killed there."""
    spec = TrainSpec.model_validate(job() | {"checkpoint": {"interval": 2, "asynchronous": False}})
    run = TrialRun(0, {}, str(data), str(directory), begun, until)
    news: queue.Queue[News] = queue.Queue()
    reporter = _TrialReporter(run, spec.total_steps, news)

    def answer() -> None:
        while isinstance(said := news.get(), Measured):
            reporter.answer(go_on=said.step != kill_at)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        return train_trial(run, spec, reporter)
    except _Stop:
        if kill_at is None:
            raise
        return None
    finally:
        news.put(Ended(0, "stopped"))
        thread.join()


def on_file(directory: Path) -> Measurements:
    return Measurements.model_validate(json.loads((directory / "measured.json").read_text()))


def test_a_trial_that_is_found_trained_ends_with_what_it_measured(tmp_path: Path, tiny_data: Path) -> None:
    first = begin(tmp_path, tiny_data, 1)
    seconds = on_file(tmp_path).seconds
    again = begin(tmp_path, tiny_data, 2)
    assert first is not None
    assert again is not None
    assert first["tokens_per_second"] > 0
    assert again.pop("seconds") > seconds > 0
    del first["seconds"]
    assert again == pytest.approx(first)


@pytest.mark.parametrize("interrupted", [{"until": 4}, {"kill_at": 4}])
def test_a_trial_that_goes_on_ends_with_the_figures_of_the_whole(
    interrupted: dict[str, int], tmp_path: Path, tiny_data: Path
) -> None:
    assert begin(tmp_path, tiny_data, 1, **interrupted) is None
    before = on_file(tmp_path)
    ended = begin(tmp_path, tiny_data, 2)
    after = on_file(tmp_path)
    assert ended is not None
    assert ended["seconds"] > before.seconds > 0
    assert after.step_seconds > before.step_seconds > 0
    assert ended["tokens_per_second"] == pytest.approx(after.integrals["tokens_per_second"] / after.step_seconds)
    steps = 6 if "until" in interrupted else 6 + 2  # killed before the checkpoint of step 4, it takes two steps again
    assert after.integrals["tokens_per_second"] == pytest.approx(steps * 4 * 32)


def test_rates_are_means_over_the_time_of_the_steps() -> None:
    measured = Measurements(seconds=10.0)
    measured.hear({"loss": 3.0, "step_seconds": 3.0, "tokens_per_second": 100.0, "mfu": 0.1})
    measured.hear({"loss": 2.0, "step_seconds": 1.0, "tokens_per_second": 300.0, "mfu": 0.3})
    measured.hear({"eval_loss": 2.5})
    result = {"eval_loss": 2.4, "train_loss": 2.0, "tokens_per_second": 0.0, "seconds": 1.0, "mfu": 0.0, "steps": 2}
    ended = measured.at_the_end(result, TrainSpec.model_validate(job()))
    assert ended["tokens_per_second"] == 150.0
    assert ended["mfu"] == pytest.approx(0.15)
    assert (ended["seconds"], ended["loss"], ended["eval_loss"]) == (11.0, 2.0, 2.4)

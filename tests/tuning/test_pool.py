"""Real trials: the engine on the session's cluster, in warm actors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workers.conftest import tiny_data as tiny_data
from tuning.pool import ActorTrials, trial_directory
from tuning.trials import Assignment, Ended, Measured, News

pytestmark = pytest.mark.cluster


def job(**training: Any) -> dict[str, Any]:
    return {
        "model": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "n_routed_experts": 2,
            "moe_intermediate_size": 16,
        },
        "training": {"steps": 6, "eval_interval": 2, "global_batch_size": 4, "micro_batch_size": 4, "eval_rows": 4, **training},
        "data_pipeline": {"sequence_length": 32},
        "monitoring": {"timing_interval": None, "peak_tflops": 1.0},
    }


@pytest.fixture
def trials(ray_cluster: None, tiny_data: Path, tmp_path: Path) -> Iterator[ActorTrials]:
    made = ActorTrials(1, {"CPU": 1}, tmp_path, 1, lambda spec: tiny_data)
    yield made
    made.close()


def heard(trials: ActorTrials) -> News:
    (news,) = trials.news(120)
    return news


def to_the_end(trials: ActorTrials) -> list[News]:
    said = [heard(trials)]
    while isinstance(said[-1], Measured):
        trials.answer(said[-1].number, go_on=True)
        said.append(heard(trials))
    return said


def test_a_trial_measures_waits_and_ends_with_its_figures_and_its_worker_is_used_again(
    trials: ActorTrials, tmp_path: Path
) -> None:
    trials.begin(Assignment(0, job()))
    assert trials.free == 0
    *measured, ended = to_the_end(trials)
    assert [news.step for news in measured if isinstance(news, Measured)] == [2, 4]
    assert isinstance(ended, Ended)
    assert ended.outcome == "succeeded"
    assert ended.metrics.keys() >= {"eval_loss", "train_loss", "loss", "seconds", "memory_bytes", "tokens_per_second"}
    assert (trial_directory(tmp_path, 0) / "checkpoints" / "step-00000006").is_dir()
    first = trials._slots[0].worker

    trials.begin(Assignment(1, job()))
    *measured_again, again = to_the_end(trials)
    assert trials._slots[0].worker is first
    losses = [[news.metrics["eval_loss"] for news in said if isinstance(news, Measured)] for said in (measured, measured_again)]
    assert losses[0] == losses[1]
    assert isinstance(again, Ended)
    assert again.metrics["eval_loss"] == ended.metrics["eval_loss"]


def test_a_trial_that_is_stopped_ends_where_it_stands(trials: ActorTrials) -> None:
    trials.begin(Assignment(0, job()))
    assert isinstance(heard(trials), Measured)
    trials.answer(0, go_on=False)
    assert heard(trials) == Ended(0, "stopped")
    assert trials.free == 1


def test_a_trial_that_the_user_can_mend_says_what_and_is_not_run_again(trials: ActorTrials) -> None:
    trials.begin(Assignment(0, job(global_batch_size=4096)))
    ended = heard(trials)
    assert isinstance(ended, Ended)
    assert (ended.outcome, ended.retry) == ("failed", False)
    assert ended.code == "not_enough_data"


def test_a_trial_whose_worker_is_killed_may_be_run_again_and_goes_on_from_its_checkpoint(
    trials: ActorTrials, tmp_path: Path
) -> None:
    import ray

    trials.begin(Assignment(0, job(steps=40) | {"checkpoint": {"interval": 2, "asynchronous": False}}))
    for _ in range(2):
        news = heard(trials)
        assert isinstance(news, Measured)
        trials.answer(0, go_on=True)
    assert isinstance(heard(trials), Measured)
    ray.kill(trials._slots[0].worker)
    trials.answer(0, go_on=True)
    died = heard(trials)
    assert isinstance(died, Ended)
    assert (died.outcome, died.code, died.retry) == ("failed", "worker_died", True)

    trials.begin(Assignment(0, job(steps=40)))
    first = heard(trials)
    assert isinstance(first, Measured)
    assert first.step == 6

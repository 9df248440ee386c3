"""What only warm actors do; what they have in common with all trials is in ``test_trials.py``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import JournalStorage

from data.errors import SourceError
from tests.tuning.talk import heard, steps, to_the_end
from tests.tuning.tiny import job
from tests.workers.conftest import tiny_data as tiny_data
from tuning.journal import KnownJournal
from tuning.loop import Loop
from tuning.pool import ActorTrials, trial_directory
from tuning.population_loop import PopulationLoop
from tuning.spec import StudySpec
from tuning.study import METRICS, Study
from tuning.trials import Assignment, Ended, ForkFailed, Measured
from workers.spec import TrainSpec

pytestmark = pytest.mark.cluster


@pytest.fixture
def trials(ray_cluster: None, tiny_data: Path, tmp_path: Path) -> Iterator[ActorTrials]:
    made = ActorTrials(1, {"CPU": 1}, tmp_path, 1, lambda spec: tiny_data)
    yield made
    made.close()


def test_a_worker_is_used_again_and_trains_as_it_did(trials: ActorTrials, tmp_path: Path) -> None:
    trials.begin(Assignment(0, job()))
    first = to_the_end(trials)
    assert (trial_directory(tmp_path, 0) / "checkpoints" / "step-00000006").is_dir()
    worker = trials._slots[0].worker
    trials.begin(Assignment(1, job()))
    again = to_the_end(trials)
    assert trials._slots[0].worker is worker
    assert steps(first) == [2, 4]
    losses = [[news.metrics["eval_loss"] for news in said if isinstance(news, Measured | Ended)] for said in (first, again)]
    assert losses[0] == losses[1]


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
    worker = trials._slots[0].worker
    ray.kill(worker)
    _until_dead(worker)
    trials.answer(0, go_on=True)
    died = heard(trials)
    assert isinstance(died, Ended)
    assert (died.outcome, died.code, died.retry) == ("failed", "worker_died", True)

    trials.begin(Assignment(0, job(steps=40)))
    first = heard(trials)
    assert isinstance(first, Measured)
    assert first.step == 6


def test_a_trial_whose_storage_is_gone_fails_with_the_path_and_its_worker_trains_others(
    trials: ActorTrials, tmp_path: Path
) -> None:
    gone = trial_directory(tmp_path, 0)
    gone.parent.mkdir()
    gone.write_text("no directory")
    trials.begin(Assignment(0, job()))
    failed = heard(trials)
    assert isinstance(failed, Ended)
    assert (failed.outcome, failed.code, failed.retry) == ("failed", "worker_failed", True)
    assert str(gone) in failed.reason
    trials.begin(Assignment(1, job()))
    *_, ended = to_the_end(trials)
    assert isinstance(ended, Ended)
    assert ended.outcome == "succeeded"


def test_a_trial_that_has_no_data_takes_no_slot(ray_cluster: None, tiny_data: Path, tmp_path: Path) -> None:
    def prepared(spec: TrainSpec) -> Path:
        raise SourceError("missing.txt does not exist")

    made = ActorTrials(1, {"CPU": 1}, tmp_path, 1, prepared)
    with pytest.raises(SourceError):
        made.begin(Assignment(0, job()))
    assert (made.free, made.news(0)) == (1, [])


def _until_dead(worker: Any) -> None:
    """To kill returns at once: a worker that still lives would hear the answer and train on."""
    import ray
    from ray.exceptions import RayActorError

    while True:
        try:
            ray.get(worker.__ray_ready__.remote())
        except RayActorError:
            return


def paused(trials: ActorTrials, number: int, recipe: dict[str, Any]) -> Measured:
    """Its measurement at step 2, where it is saved and leaves its slot."""
    trials.begin(Assignment(number, recipe, until=2))
    measured = heard(trials)
    assert isinstance(measured, Measured)
    trials.answer(number, go_on=True)
    assert heard(trials) == Ended(number, "paused")
    assert trials.free == 1
    return measured


def test_a_trial_goes_on_from_anothers_weights_and_optimizer_with_values_of_its_own(
    trials: ActorTrials, tmp_path: Path
) -> None:
    recipe = job(learning_rate=2e-2, warmup_steps=0)
    trials.begin(Assignment(0, recipe))
    undisturbed = [news.metrics["eval_loss"] for news in to_the_end(trials) if isinstance(news, Measured | Ended)]
    parent = paused(trials, 1, recipe)
    assert parent.metrics["eval_loss"] == undisturbed[0]
    trials.begin(Assignment(1, recipe, until=2))
    assert heard(trials) == Ended(1, "paused"), "it is there"
    for child in (2, 3):
        trials.fork(1, child, 2)
        trials.fork(1, child, 2)

    trials.begin(Assignment(2, recipe))
    same = to_the_end(trials)
    assert [news.metrics["eval_loss"] for news in same if isinstance(news, Measured | Ended)] == undisturbed[1:]
    trials.begin(Assignment(3, job(learning_rate=1e-5, warmup_steps=0)))
    first = heard(trials)
    assert isinstance(first, Measured)
    assert first.step == 4
    assert first.metrics["learning_rate"] < 1e-5
    assert first.metrics["eval_loss"] == pytest.approx(parent.metrics["eval_loss"], abs=2e-3), "its weights hardly move"
    assert abs(undisturbed[1] - undisturbed[0]) > 2e-2
    with pytest.raises(ForkFailed, match="checkpoint of trial 1 at step 4"):
        trials.fork(1, 4, 4)


def test_the_ends_of_schedules_and_a_dropout_that_follows_the_loss_are_searched(trials: ActorTrials) -> None:
    floor, betas, low = "training.min_learning_rate_ratio", "training.final_betas", "training.adaptive_dropout.low"
    given = {
        "base": job(steps=6, warmup_steps=0, learning_rate=5e-5, adaptive_dropout={"low": 0.1, "high": 0.3}),
        "space": {
            floor: {"type": "float", "low": 0.02, "high": 1.0, "log": True},
            betas: {"type": "choice", "choices": [None, [0.5, 0.6]]},
            low: {"type": "float", "low": 0.0, "high": 0.3},
        },
        "points": [
            {floor: 0.02, betas: None, low: 0.0},
            {floor: 1.0, betas: None, low: 0.0},
            {floor: 1.0, betas: [0.5, 0.6], low: 0.3},
        ],
        "sampler": "random",
        "budget": {"trials": 4},
    }
    study = Study(StudySpec.model_validate(given), JournalStorage(KnownJournal([])))
    Loop(study, trials, pulse=lambda: None, clock=lambda: 0.0).run()
    assert study.standings() == {"complete": 4}
    base, falling, constant, moving = (trial.user_attrs[METRICS] for trial in study.trials)
    rates = [each["learning_rate"] for each in (falling, base, constant, moving)]
    assert rates[0] < rates[1] < rates[2] == rates[3] == pytest.approx(5e-5)
    assert [each["dropout"] for each in (base, falling, moving)] == [0.1, 0.0, 0.3]
    assert moving["eval_loss"] != constant["eval_loss"]


def test_a_population_trains_in_turn_to_its_end(trials: ActorTrials, tmp_path: Path) -> None:
    given = {
        "base": job(steps=6, warmup_steps=0),
        "space": {"training.learning_rate": {"type": "float", "low": 1e-6, "high": 3e-2, "log": True}},
        "points": [{"training.learning_rate": 1e-6}],
        "scheduler": {"type": "pbt", "population": 2, "interval": 2, "resample_probability": 0.0},
    }
    study = Study(StudySpec.model_validate(given), JournalStorage(KnownJournal([])))
    PopulationLoop(study, trials, pulse=lambda: None, clock=lambda: 0.0).run()
    first, second, *_ = study.trials
    assert study.standings() == {"complete": 2, "pruned": 2}
    assert first.intermediate_values[2] < second.intermediate_values[2]
    assert second.user_attrs["reason"] == "exploited trial 0 at step 2"
    child = study.trial(2)
    assert study.point(2)["training.learning_rate"] in (4e-3 * 0.8, 4e-3 * 1.2)
    assert child.intermediate_values[4] == pytest.approx(first.intermediate_values[4], abs=0.05), "it goes on from trial 0"
    assert min(trial.values[0] for trial in study.best()) < first.intermediate_values[2]

"""The peer of the tuning bench's overhead: Ray Tune on the trainable that Manta's trials are.

What slows Tune down and is not asked for is off: no files of results, no progress table, no checkpoints of the experiment.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1e9")

from ray.tune import RunConfig, Trainable, TuneConfig, Tuner
from ray.tune.search import Searcher

from tuning.trials import Ended
from tuning.worker import TrialRun, TrialWorker


class TinyTrial(Trainable):
    """One trial after another in one process; a result at each of its evaluations and at its end."""

    def setup(self, config: dict[str, Any]) -> None:
        self.worker = TrialWorker(config["job_dir"], 1, 0)
        self.begun = False

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.begun = False
        return True

    def step(self) -> dict[str, Any]:
        news = self.worker.answer(True) if self.begun else self.worker.begin(self.trial_run())
        self.begun = True
        assert not isinstance(news, Ended) or news.outcome == "succeeded", news
        return {"eval_loss": news.metrics["eval_loss"], "done": isinstance(news, Ended)}

    def trial_run(self) -> TrialRun:
        config = self.config
        return TrialRun(
            number=config["number"],
            job=json.loads(config["job"]),
            prepared=config["prepared"],
            directory=config["directory"],
            begun=config["number"] + 1,
        )

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        pass


class Listed(Searcher):
    """Trials in the order of a list, and when each was handed out, Unix seconds. ``wait`` is called before that."""

    def __init__(self, runs: list[dict[str, Any]], wait: Callable[[], None]) -> None:
        super().__init__(metric="eval_loss", mode="min")
        self.wait = wait
        self.left = list(runs)
        self.chosen: dict[int, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "wait": None}  # Tune keeps a copy on disk, to restore an experiment from

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        if not self.left:
            return Searcher.FINISHED
        run = self.left.pop(0)
        self.wait()
        self.chosen[run["number"]] = time.time()
        return run

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        assert not error


def run(runs: list[dict[str, Any]], storage: Path, wait: Callable[[], None]) -> dict[int, float]:
    """Trial -> when Tune got its point, Unix seconds."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # else it misses the files of results
    searcher = Listed(runs, wait)
    tuner = Tuner(
        TinyTrial,
        tune_config=TuneConfig(search_alg=searcher, num_samples=len(runs), max_concurrent_trials=1, reuse_actors=True),
        run_config=RunConfig(storage_path=str(storage), verbose=0),
    )
    results = tuner.fit()
    assert results.num_errors == 0, results.errors
    return searcher.chosen

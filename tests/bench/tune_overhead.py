"""What a small trial costs beyond its training.

From the moment its point is chosen to its first optimizer step, less the time of a step when warm.

Manta's loop with its warm actors against Ray Tune with ``reuse_actors=True`` on the same trainable and one cluster, a trial
of the one and a trial of the other in turn; who is not at turn waits with its point chosen, and its process warm. The
trainable is Manta's (``TrialWorker``), called by Manta's actor or by a ``ray.tune.Trainable``
(``peers/ray_tune_trainable.py``), so the model, the data and the step are the same, and the rest is what differs. Each side's
clock starts as it is at turn with a point; both read the moment of a step from the trainable's own log. The first trial of
each, for which a process starts, does not count.
"""

import json
import os
import random
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from time import time
from typing import Any

from optuna.storages import JournalStorage

from data.executors import SerialExecutor
from data.prepare import prepare
from tests.bench.peers import ray_tune_trainable
from tests.bench.tune_table import base, write_corpus
from tuning.asking import Suggestion
from tuning.journal import KnownJournal
from tuning.loop import Loop
from tuning.pool import ActorTrials
from tuning.spec import StudySpec
from tuning.study import Study
from workers.logs import log_path
from workers.spec import TrainSpec

CORES = 2
TRIALS = 31
TRIAL_STEPS, INTERVAL = 6, 3
RATE = "training.learning_rate"


@dataclass(frozen=True)
class Spent:
    """Of one trial, seconds."""

    first: float
    """From the choice of its point to the end of its first optimizer step."""
    second: float
    """Of the step after that."""


def spent(chosen: Mapping[int, float], log: Path) -> list[Spent]:
    """Of each trial but the first.

    Args:
        chosen: trial -> when its point was chosen, Unix seconds.
        log: of the process that trained them.
    """
    done: dict[int, dict[int, float]] = {}
    for line in log.read_text().splitlines():
        at, _, said = line.partition(" ")
        if found := re.search(r": trial (\d+) begins", said):
            steps = done.setdefault(int(found[1]), {})
        elif found := re.search(r": step (\d+) of \d+: loss", said):
            steps[int(found[1])] = datetime.fromisoformat(at).timestamp()
    assert done.keys() == chosen.keys(), f"{log} has trials {sorted(done)}, not {sorted(chosen)}"
    first = min(done)
    return [Spent(each[1] - chosen[n], each[2] - each[1]) for n, each in sorted(done.items()) if n != first]


def overhead_ms(trials: Sequence[Spent]) -> float:
    """The median over trials, less the median of a warm step."""
    return 1e3 * (median(each.first for each in trials) - median(each.second for each in trials))


class Turns:
    """Two sides, a trial each: whoever has chosen a point waits until the other's trial has ended."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._left: set[str] = set()
        self._at_turn, self._trains = "manta", False

    def take(self, who: str) -> None:
        """Called as the trial before, if there was one, has ended."""
        with self._changed:
            if self._at_turn == who and self._trains:
                self._pass_on(who)
            self._changed.wait_for(lambda: self._at_turn == who and not self._trains)
            self._trains = True

    def leave(self, who: str) -> None:
        with self._changed:
            self._left.add(who)
            if self._at_turn == who:
                self._pass_on(who)

    def _pass_on(self, who: str) -> None:
        other = "ray" if who == "manta" else "manta"
        self._at_turn, self._trains = who if other in self._left else other, False
        self._changed.notify_all()


class _TimedStudy(Study):
    """Waits for its turn with the point of each trial, and knows when that was."""

    def __init__(self, spec: StudySpec, turns: Turns) -> None:
        super().__init__(spec, JournalStorage(KnownJournal([])))
        self.turns = turns
        self.chosen: dict[int, float] = {}

    def begin(self, suggestion: Suggestion, attributes: Mapping[str, Any] | None = None) -> int:
        self.turns.take("manta")
        now = time()
        number = super().begin(suggestion, attributes)
        self.chosen[number] = now
        return number


def manta(folder: Path, job: dict[str, Any], prepared: Path, trials: int, turns: Turns) -> list[Spent]:
    given = {
        "base": job,
        "space": {RATE: {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}},
        "sampler": "random",
        "budget": {"trials": trials},
    }
    study = _TimedStudy(StudySpec.model_validate(given), turns)
    workers = ActorTrials(1, {"CPU": 1}, folder, 1, lambda spec: prepared)
    try:
        Loop(study, workers, pulse=lambda: None, clock=time).run()
    finally:
        turns.leave("manta")
        workers.close()
    return spent(study.chosen, log_path(folder, 1, 0))


def tune(folder: Path, job: dict[str, Any], prepared: Path, trials: int, turns: Turns) -> list[Spent]:
    draw = random.Random(0)
    runs = []
    for number in range(trials):
        document = {**job, "training": {**job["training"], "learning_rate": 10 ** draw.uniform(-3, -1)}}
        runs.append(
            {
                "number": number,
                "job": json.dumps(document),
                "prepared": str(prepared),
                "directory": str(folder / "trials" / str(number)),
                "job_dir": str(folder),
            }
        )
    try:
        chosen = ray_tune_trainable.run(runs, folder / "tune", lambda: turns.take("ray"))
    finally:
        turns.leave("ray")
    return spent(chosen, log_path(folder, 1, 0))


@contextmanager
def cluster() -> Iterator[None]:
    """With nobody who watches it."""
    import ray

    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(address="local", num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def overhead_figures(say: Callable[[str], None], trials: int = TRIALS) -> dict[str, Any]:
    turns = Turns()
    with tempfile.TemporaryDirectory(prefix="manta-bench-") as name, cluster(), ThreadPoolExecutor(1) as thread:
        home = Path(name)
        write_corpus(home / "tales.jsonl")
        job = base(home / "tales.jsonl")
        job["training"] |= {"steps": TRIAL_STEPS, "eval_interval": INTERVAL}
        spec = TrainSpec.model_validate(job)
        prepared = prepare(spec.data_pipeline, spec.tokenizer, home, SerialExecutor(), lambda progress: None).path
        beside = thread.submit(manta, home / "manta", job, prepared, trials, turns)
        theirs = tune(home / "ray", job, prepared, trials, turns)
        ours = beside.result()
    for who, side in (("manta", ours), ("ray", theirs)):
        first = sorted(round(1e3 * each.first) for each in side)
        say(f"  {who}: {overhead_ms(side):.1f} ms; to the first step {first[0]} to {first[-1]} ms")
    return {
        "trial_overhead_ms": round(overhead_ms(ours), 2),
        "ray_trial_overhead_ms": round(overhead_ms(theirs), 2),
        "trial_overhead_vs_ray": round(overhead_ms(ours) / overhead_ms(theirs), 3),
        "warm_step_ms": round(1e3 * median(each.second for each in (*ours, *theirs)), 2),
        "overhead_trials": len(ours),
    }

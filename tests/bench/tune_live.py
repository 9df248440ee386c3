"""Does a study on a running Manta measure what the table says, and end as its replay does? It is started as its user does, over
the table's points, with as many steps as the replays have."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.storages import InMemoryStorage

from tests.bench.overhead import manta_up
from tests.bench.tune_replay import BUDGET_STEPS, Table, TableTrials
from tests.bench.tune_table import SPACE, STEPS, base, write_corpus
from tuning.loop import Loop
from tuning.spec import StudySpec
from tuning.study import Study

MANY = 200
"""More trials than the steps are enough for."""


def study(corpus: Path) -> dict[str, Any]:
    return {
        "kind": "tune",
        "name": "live",
        "base": base(corpus),
        "space": {path: {"type": "choice", "choices": values} for path, values in SPACE.items()},
        "scheduler": {"type": "asha"},
        "budget": {"steps": BUDGET_STEPS},
    }


def replayed(given: dict[str, Any]) -> tuple[float, int]:
    """(The lowest final loss of a study, its trials) by the table."""
    trials = TableTrials(Table(), steps_left=2 * BUDGET_STEPS)
    spec = StudySpec.model_validate({name: given[name] for name in given if name not in ("kind", "name")})
    Loop(Study(spec, InMemoryStorage()), trials, pulse=lambda: None, clock=lambda: 0.0).run()
    return trials.best, trials.begun


def live_figures(say: Callable[[str], None]) -> dict[str, Any]:
    table, furthest = Table(), 0.0
    with tempfile.TemporaryDirectory(prefix="manta-bench-") as folder, manta_up() as bench:
        write_corpus(Path(folder) / "tales.jsonl")
        given = study(Path(folder) / "tales.jsonl")
        job, _ = bench.result(bench.client.submit(given).id)
        assert job.state == "succeeded", job.failure
        trials, shown = bench.client.trials(job.id, limit=MANY).items, bench.client.study(job.id)
    (best,) = shown.best
    foretold, foretold_trials = replayed(given)
    for trial in trials:
        expected = table.curve(trial.point)
        measured = trial.curve | ({STEPS: trial.values["eval_loss"]} if trial.values else {})
        off = max(abs(loss - expected[step]) for step, loss in measured.items())
        furthest = max(furthest, off)
        say(
            f"  trial {trial.number} {trial.state} after {max(measured)} steps: {measured[max(measured)]:.4f}, off by {off:.5f}"
        )
    loss = best.values["eval_loss"]
    return {
        "live_vs_table": round(abs(loss - table.curve(best.point)[STEPS]), 5),
        "live_vs_replay": round(abs(loss - foretold), 5),
        "live_vs_replay_trials": abs(len(trials) - foretold_trials),
        "live_vs_table_furthest": round(furthest, 5),
        "live_best_loss": round(loss, 4),
        "live_best_rank": round(table.rank(loss), 4),
        "live_trials": len(trials),
        "live_steps": shown.steps,
    }

"""Does a study on a running Manta measure what the table says, and end as its replay does? It is started as its user does, over
the table's points, with as many steps as the replays have."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.overhead import manta_up
from tests.bench.tune_replay import BUDGET_STEPS, Table, TableTrials, replayed
from tests.bench.tune_table import SPACE, STEPS, base, write_corpus
from tuning.spec import StudySpec

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


def foretold(given: dict[str, Any]) -> TableTrials:
    """The same study by the table, with steps for the last trial to come to its end."""
    spec = StudySpec.model_validate({name: given[name] for name in given if name not in ("kind", "name")})
    return replayed(spec, 2 * BUDGET_STEPS)


def live_figures(say: Callable[[str], None]) -> dict[str, Any]:
    table, furthest = Table(), 0.0
    with tempfile.TemporaryDirectory(prefix="manta-bench-") as folder, manta_up() as bench:
        write_corpus(Path(folder) / "tales.jsonl")
        given = study(Path(folder) / "tales.jsonl")
        job, _ = bench.result(bench.client.submit(given).id)
        assert job.state == "succeeded", job.failure
        trials, shown = bench.client.trials(job.id, limit=MANY).items, bench.client.study(job.id)
    (best,) = shown.best
    replay = foretold(given)
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
        "live_vs_replay": round(abs(loss - replay.best), 5),
        "live_vs_replay_trials": abs(len(trials) - replay.begun),
        "live_vs_table_furthest": round(furthest, 5),
        "live_best_loss": round(loss, 4),
        "live_best_rank": round(table.rank(loss), 4),
        "live_trials": len(trials),
        "live_steps": shown.steps,
    }

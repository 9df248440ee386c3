"""How good a search is, what it saves and what it costs: ``make bench NAME=tune``.

One part alone: ``python -m tests.bench.tune regret``.

- ``regret``: how far from a function's minimum the best of 60 trials is, beside Optuna's samplers (``tune_search.py``).
- ``multifidelity``: how soon a search that stops trials early is near it, beside Ray Tune's (``tune_fidelity.py``).
- ``real``: measured runs of a tiny mixture of experts, replayed (``tune_table.py``, ``tune_replay.py``).
- ``live``: a study on a running Manta, beside that table (``tune_live.py``).
- ``overhead``: what a small trial costs beside Ray Tune (``tune_overhead.py``).
- ``asks``: what the next point costs near trial 1,000 beside Optuna, and whether memory grows (``tune_asks.py``).

Peers run in the same run, with their own defaults. The last line is one JSON object.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.bench.tune_asks import ask_figures
from tests.bench.tune_fidelity import fidelity_figures
from tests.bench.tune_live import live_figures
from tests.bench.tune_overhead import overhead_figures
from tests.bench.tune_replay import replay_figures
from tests.bench.tune_search import RACED, regret_figures

PARTS: dict[str, Callable[[Callable[[str], None]], dict[str, Any]]] = {
    "regret": regret_figures,
    "multifidelity": fidelity_figures,
    "real": replay_figures,
    "live": live_figures,
    "overhead": overhead_figures,
    "asks": ask_figures,
}
AT_LEAST = {
    "multifidelity_vs_ray_hartmann3": 2.0,
    "multifidelity_vs_ray_hartmann6": 2.0,
    "table_runs": 300,
    "wins_vs_random": 0.9,
    "wins_vs_tpe": 0.6,
}
AT_MOST = {
    **{f"regret_vs_best_{name}{seeds}": 1.1 for name in RACED for seeds in ("", "_first10")},
    "live_vs_table": 1e-3,
    "live_vs_replay": 1e-3,
    "live_vs_replay_trials": 0,
    "live_best_rank": 0.05,
    "trial_overhead_vs_ray": 1.0,
    "ask_vs_optuna_tpe": 1.2,
    "ask_vs_optuna_gp": 1.2,
    "ask_memory_growth_kib_tpe": 8.0,
    "ask_memory_growth_kib_gp": 8.0,
}


def missed(figures: dict[str, Any]) -> dict[str, float]:
    """What was measured and is on the wrong side of its mark."""
    wrong = [name for name, least in AT_LEAST.items() if name in figures and figures[name] < least]
    wrong += [name for name, most in AT_MOST.items() if name in figures and figures[name] > most]
    return {name: figures[name] for name in wrong}


def main(parts: Sequence[str]) -> None:
    if unknown := [part for part in parts if part not in PARTS]:
        sys.exit(f"there is no part {unknown[0]}; there are {', '.join(PARTS)}")
    figures: dict[str, Any] = {"bench": "tune", "peer": "Optuna's samplers; Ray Tune's OptunaSearch, ASHA and reused actors"}
    for part in parts or PARTS:
        say(part)
        before = time.perf_counter()
        figures |= PARTS[part](say)
        figures[f"{part}_seconds"] = round(time.perf_counter() - before)
    figures |= {
        "at_least": AT_LEAST,
        "at_most": AT_MOST,
        "missed": missed(figures),
        "units": {
            "regret": "median distance to the minimum, in the function's unit",
            "regret_vs_best": "Manta's regret / the least of its peers', those under 0.001 counted as 0.001",
            "area": "mean over the epochs spent of the incumbent's regret, mean over seeds",
            "multifidelity_vs_ray": "Ray's area / Manta's",
            "wins_vs": "share of seeds with a lower final loss; ties are half",
            "table_loss": "held-out loss, nats, median over seeds",
            "table_rank, live_best_rank": "share of the table's runs that ended lower",
            "live_vs_table, live_vs_replay": "nats",
            "live_vs_replay_trials": "trials more or fewer",
            "trial_overhead_vs_ray, ask_vs_optuna": "Manta / peer",
            "ask_memory_growth_kib": "KiB / ask",
            "ms": "ms; of asks CPU time",
            "seconds": "s",
        },
    }
    print(json.dumps(figures))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The table that searches are replayed on: every point of a grid over six parameters of a tiny MoE, trained and measured.

``python -m tests.bench.tune_table`` trains what the committed file lacks and adds it (a second or two each); the text is drawn
from a fixed seed, so that anybody trains on the same.
"""

import itertools
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.dataset import PackedDataset
from data.executors import SerialExecutor
from data.prepare import prepare
from workers.attempt import ReportKind
from workers.checkpoint import CheckpointStore
from workers.loop import train
from workers.mesh import Membership
from workers.reporter import NullReporter
from workers.spec import TrainSpec

PATH = Path(__file__).parent / "tables" / "tiny_moe.json"

SPACE: dict[str, list[Any]] = {
    "training.learning_rate": [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256],
    "training.warmup_fraction": [0.02, 0.1, 0.3],
    "training.weight_decay": [0.0, 0.2],
    "training.optimizer": ["adamw", "muon"],
    "model.num_hidden_layers": [1, 2],
    "model.n_routed_experts": [2, 8],
}
STEPS, INTERVAL = 81, 9


def base(corpus: Path | str) -> dict[str, Any]:
    """The training job that points are put into."""
    return {
        "data_pipeline": {"sources": [{"path": str(corpus)}], "sequence_length": 64, "held_out_fraction": 0.05},
        "tokenizer": {"vocab_size": 384},
        "model": {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "moe_intermediate_size": 32},
        "training": {
            "steps": STEPS,
            "eval_interval": INTERVAL,
            "global_batch_size": 8,
            "micro_batch_size": 8,
            "eval_rows": 32,
        },
        "checkpoint": {"interval": STEPS, "keep_last": 1},
        "monitoring": {"timing_interval": None, "peak_tflops": 1.0},
    }


def write_corpus(path: Path) -> None:
    """Two thousand short tales whose people, places and habits hang together: something to learn at every distance."""
    draw = random.Random(20)
    people, places = ["Anna", "Boris", "Chen", "Dina", "Emre", "Farah"], ["harbour", "market", "library", "garden", "station"]
    things, deeds = ["a lamp", "two books", "some bread", "the map", "an old key"], ["finds", "loses", "buys", "hides", "draws"]
    with path.open("w") as file:
        for number in range(2000):
            who, other = draw.sample(people, 2)
            where, what = draw.choice(places), draw.choice(things)
            tale = [f"Tale {number}: {who} walks to the {where}."]
            for _ in range(draw.randint(4, 9)):
                deed = draw.choice(deeds)
                tale.append(f"There {draw.choice([who, other])} {deed} {draw.choice([what, what, draw.choice(things)])}.")
            tale.append(f"In the evening {who} leaves the {where} with {what}, and {other} waves.")
            file.write(json.dumps({"text": " ".join(tale)}) + "\n")


def points() -> Iterator[dict[str, Any]]:
    for values in itertools.product(*SPACE.values()):
        yield dict(zip(SPACE, values, strict=True))


def key(point: dict[str, Any]) -> str:
    return json.dumps([point[path] for path in SPACE])


class _Curve(NullReporter):
    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def _report(self, kind: ReportKind, data: dict[str, Any]) -> None:
        if kind == "metrics" and "eval_loss" in data["values"]:
            self.losses[data["step"]] = round(data["values"]["eval_loss"], 5)


def measure(point: dict[str, Any], corpus: Path, prepared: Path) -> list[float]:
    """Held-out loss after every ``INTERVAL`` steps."""
    job: dict[str, Any] = base(corpus)
    for path, value in point.items():
        block, name = path.split(".")
        job[block][name] = value
    curve = _Curve()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointStore(Path(folder), 1, asynchronous=False)
        train(TrainSpec.model_validate(job), Membership(), PackedDataset.open(prepared), checkpoints, curve)
        checkpoints.close()
    return [curve.losses[step] for step in range(INTERVAL, STEPS + 1, INTERVAL)]


def load() -> dict[str, list[float]]:
    """Point -> curve, as committed."""
    table: dict[str, list[float]] = json.loads(PATH.read_text())["curves"] if PATH.exists() else {}
    return table


def save(curves: dict[str, list[float]]) -> None:
    head = {"space": SPACE, "steps": STEPS, "interval": INTERVAL}
    lines = ",\n".join(f"{json.dumps(point)}: {json.dumps(curves[point])}" for point in sorted(curves))
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(json.dumps(head)[:-1] + ', "curves": {\n' + lines + "\n}}\n")


def main() -> None:
    curves = load()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "tales.jsonl"
        write_corpus(corpus)
        spec = TrainSpec.model_validate(base(corpus))
        prepared = prepare(spec.data_pipeline, spec.tokenizer, Path(folder), SerialExecutor(), lambda progress: None).path
        wanted = [point for point in points() if key(point) not in curves]
        for done, point in enumerate(wanted, 1):
            curves[key(point)] = measure(point, corpus, prepared)
            print(f"{done}/{len(wanted)} {key(point)} {curves[key(point)][-1]}", flush=True)
            if done % 20 == 0 or done == len(wanted):
                save(curves)


if __name__ == "__main__":
    main()

"""What one GPU makes of a training step: ``make bench NAME=gpu``. Without a CUDA device it says so and ends with status 1.

First the race of ``make bench NAME=train`` on the device, by wall time: the same model, rows, recipe and peer, ours in bf16
with fp32 masters, the peer autocast to bf16, as it is and compiled; five steps' losses agree before anything is timed. Then
``olmoe-7b-a1b`` in bf16 with moments in bf16: tokens a second, and the share of the device's dense bf16 peak that its model
FLOPs are (causal attention counted half, recomputation not counted). That needs about 110 GB; ``MANTA_BENCH_PRESET`` names
another preset for smaller cards.

The last line is one JSON object.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers

from data.dataset import Batch
from tests.bench import train
from tests.bench.peers.hf_train import Peer
from workers.compat_torch import graphs_compiled
from workers.engine import Engine
from workers.flops import known_peak
from workers.mesh import Membership
from workers.model.count import flops_per_token
from workers.model.presets import PRESETS
from workers.spec import TrainSpec

TARGETS = {"bf16_vs_hf": 2.0, "mfu": 0.4}
LENGTH, ROWS, WARM_UP, STEPS = 4096, 8, 3, 10


def on_gpu(spec: TrainSpec) -> TrainSpec:
    return spec.model_copy(update={"gpu_config": spec.gpu_config.model_copy(update={"gpus_per_node": 1})})


def timed(step: Callable[[int], float], first: int, count: int, device: torch.device) -> float:
    """Wall seconds of a step, the median."""
    seconds = []
    for i in range(first, first + count):
        before = time.perf_counter()
        step(i)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - before)
    return median(seconds)


def race(directory: Path, device: torch.device) -> dict[str, float]:
    dataset = train.shards(directory, train.AGREEING_STEPS + train.ROUNDS)

    def rows(step: int) -> Batch:
        return train.batch_of(dataset, step)

    weights = train.initial_weights(Engine.build(train.spec("fp32", compiled=False), Membership(), train.VOCABULARY))
    train.export(weights, directory)
    spec = train.spec("bf16")
    ours = train.Ours(weights, rows, on_gpu(spec) if device.type == "cuda" else spec)

    def peer(experts: str, compiled: bool) -> train.Step:
        made = Peer(directory, train.RECIPE, experts=experts, autocast=True, compiled=compiled, device=device)
        return lambda step: made.step(torch.from_numpy(rows(step).tokens).long())

    contenders: dict[str, train.Step] = {"bf16": ours}
    contenders |= {f"hf_{experts}": peer(experts, False) for experts in ("eager", "grouped_mm")}
    contenders |= {"hf_grouped_mm_compiled": peer("grouped_mm", True)}
    losses = {name: [step(i) for i in range(train.AGREEING_STEPS)] for name, step in contenders.items()}
    for name in contenders.keys() - {"bf16"}:
        apart = max(abs(a - b) for a, b in zip(losses["bf16"], losses[name], strict=True))
        assert apart <= train.TOLERANCE["bf16"], f"{losses['bf16']} here, {losses[name]} in {name}"
    seconds = {name: timed(step, train.AGREEING_STEPS, train.ROUNDS, device) for name, step in contenders.items()}
    best = min(value for name, value in seconds.items() if name != "bf16")
    figures = {f"{name}_step_seconds": round(value, 4) for name, value in seconds.items()}
    return {"bf16_vs_hf": round(best / seconds["bf16"], 3), **figures}


def utilised(preset: str) -> TrainSpec:
    """A step of one micro-batch."""
    return TrainSpec.model_validate(
        {
            "data_pipeline": {"sequence_length": LENGTH},
            "tokenizer": {"vocab_size": PRESETS[preset].vocab_size},
            "model": {"preset": preset},
            "training": {
                "steps": WARM_UP + STEPS,
                "global_batch_size": ROWS,
                "micro_batch_size": ROWS,
                "precision": "bf16",
                "moments_dtype": "bf16",
                "activation_checkpointing": "selective",
                "compile": True,
            },
        }
    )


def utilisation(spec: TrainSpec, device: torch.device, peak: float | None) -> dict[str, Any]:
    """Tokens a second of ``spec`` on rows of one document, and its model FLOPs over ``peak`` (FLOP/s)."""
    length, rows = spec.data_pipeline.row_length, spec.training.micro_batch_size
    engine = Engine.build(spec, Membership(), spec.tokenizer.vocab_size)
    draw = np.random.default_rng(0)
    documents = np.zeros((rows, length), dtype=np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))

    def step(_: int) -> float:
        tokens = draw.integers(0, spec.tokenizer.vocab_size, (rows, length), dtype=np.uint32)
        return engine.train_step([Batch(tokens, documents, positions)]).loss

    for i in range(WARM_UP):
        step(i)
    graphs = graphs_compiled()
    seconds = timed(step, 0, STEPS, device)
    assert graphs_compiled() == graphs, "graphs were compiled after the warm-up"
    rate = rows * length / seconds
    flops = rate * flops_per_token(spec.model, spec.tokenizer.vocab_size, length)
    figures = {"tokens_per_second": round(rate, 1), "step_seconds": round(seconds, 4), "model_tflops": round(flops / 1e12, 2)}
    if device.type == "cuda":
        figures["peak_allocated_bytes"] = torch.cuda.max_memory_allocated(device)
    return figures | {"mfu": None if peak is None else round(flops / peak, 4)}


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device: nothing was measured")
    device, preset = torch.device("cuda", 0), os.environ.get("MANTA_BENCH_PRESET", "olmoe-7b-a1b")
    name = torch.cuda.get_device_name(device)
    with tempfile.TemporaryDirectory(prefix="manta-bench-") as directory:
        figures: dict[str, Any] = race(Path(directory), device)
    figures |= utilisation(on_gpu(utilised(preset)), device, known_peak(name, "bf16"))
    missed = {key: figures[key] for key, least in TARGETS.items() if (figures[key] or 0.0) < least}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    units = {"vs": "the peer's wall time a step / Manta's", "mfu": "of the device's dense bf16 peak", "seconds": "s, median"}
    print(json.dumps({"bench": "gpu", "card": name, "preset": preset, **figures, "missed": missed, **versions, "units": units}))


if __name__ == "__main__":
    main()

"""Whether what attention sees, or the compute type, costs quality on a small model: ``make bench NAME=patterns``.

The tiny preset is trained with every attention pattern in fp32 (full, sliding, layered, hierarchical, and segments with a
memory), and with full attention in bf16, by three seeds each, on the quickstart's sources, tokenizer and recipe for as many
steps as fit into eight minutes on two cores. All read the same rows: documents begin at block borders, which hierarchical
attention asks for, and are cut into chains of two segments, which segment memory does. A seed is that of the initial weights
and of the order.

Asserted: the mean held-out loss of each pattern, and of bf16, is at most max(0.02, 2 sd) from that of full attention in fp32,
sd being the standard deviation between seeds, pooled over the two that are compared. The last line is one JSON object.
"""

import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml

from data.dataset import PackedDataset
from data.executors import SerialExecutor
from data.prepare import prepare
from data.steps import StepOrder
from workers.allocator import keep_freed_memory
from workers.engine import Engine
from workers.evaluate import held_out_loss
from workers.mesh import Membership
from workers.spec import TrainSpec

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
CACHE = Path(os.environ.get("MANTA_BENCH_DATA", Path(tempfile.gettempdir()) / "manta-bench-prepared"))
"""Prepared data is found again here."""
SEEDS = (0, 1, 2)
STEPS = 80
EVALUATED_ROWS = 128
PROCESSES = 2
ALLOWED = 0.02
"""Nats."""
SEGMENT, BLOCK = 128, 32
PATTERNS: dict[str, dict[str, Any]] = {
    "full": {},
    "sliding": {"attention_pattern": "sliding", "sliding_window": 128},
    "layered": {"attention_pattern": "layered", "sliding_window": 64},
    "hierarchical": {"attention_pattern": "hierarchical", "hierarchical_block": BLOCK, "hierarchical_slots": 8},
    "segments": {"segment_length": SEGMENT, "memory_length": SEGMENT},
}
RUNS = {f"{name}_fp32": (name, "fp32") for name in PATTERNS} | {"full_bf16": ("full", "bf16")}
BASE = "full_fp32"


def spec(run: str, seed: int) -> TrainSpec:
    pattern, precision = RUNS[run]
    quickstart = yaml.safe_load(QUICKSTART.read_text())
    rows = {"sequence_length": SEGMENT, "chain_segments": 2, "document_alignment": BLOCK}
    recipe = {"steps": STEPS, "micro_batch_size": 8, "precision": precision, "seed": seed, "eval_rows": EVALUATED_ROWS}
    return TrainSpec.model_validate(
        {
            "data_pipeline": {**quickstart["data_pipeline"], **rows},
            "tokenizer": quickstart["tokenizer"],
            "model": {"preset": "tiny", **PATTERNS[pattern]},
            "training": {"global_batch_size": 8, "learning_rate": quickstart["training"]["learning_rate"], **recipe},
        }
    )


def trained(run: str, seed: int, data: Path) -> tuple[str, int, float, float]:
    """Run, seed, held-out loss, and seconds."""
    started = time.perf_counter()
    keep_freed_memory()
    torch.set_num_threads(1)
    asked, dataset = spec(run, seed), PackedDataset.open(data)
    engine = Engine.build(asked, Membership(), dataset.manifest.vocab_size)
    order = StepOrder(dataset.manifest, seed, asked.curriculum)
    for step in range(asked.total_steps):
        result = engine.train_step([dataset.rows("train", *part) for part in order.micro_batches(step)])
        assert result.applied, f"{run}, seed {seed}: step {step + 1} was skipped"
    return run, seed, held_out_loss(engine, dataset), time.perf_counter() - started


def verdicts(losses: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of each but the base: how far its mean is above the base's, and how far it may be."""
    found = {}
    for run in losses:
        if run != BASE:
            sd = ((stdev(losses[run]) ** 2 + stdev(losses[BASE]) ** 2) / 2) ** 0.5
            above = mean(losses[run]) - mean(losses[BASE])
            found[run] = {"above_full_fp32": round(above, 4), "allowed": round(max(ALLOWED, 2 * sd), 4)}
    return found


def main() -> None:
    started = time.perf_counter()
    example = spec(BASE, 0)
    prepared = prepare(example.data_pipeline, example.tokenizer, CACHE, SerialExecutor(), lambda progress: None)
    say(f"data {'found' if prepared.reused else 'prepared'} in {time.perf_counter() - started:.0f} s: {prepared.path}")
    losses: dict[str, list[float]] = {run: [] for run in RUNS}
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(trained, run, seed, prepared.path) for seed in SEEDS for run in RUNS]
        for future in futures:
            run, seed, loss, seconds = future.result()
            losses[run].append(loss)
            say(f"{run}, seed {seed}: held-out loss {loss:.4f} after {STEPS} steps, {seconds:.0f} s")
    figures = {
        "bench": "patterns",
        "peer": "full attention in fp32",
        **{f"{run}_mean": round(mean(values), 4) for run, values in losses.items()},
        **{f"{run}_sd": round(stdev(values), 4) for run, values in losses.items()},
        "differences": (found := verdicts(losses)),
        "missed": [run for run, each in found.items() if abs(each["above_full_fp32"]) > each["allowed"]],
        "steps": STEPS,
        "seeds": len(SEEDS),
        "unigram_loss": round(prepared.manifest.unigram_loss, 4),
        "bigram_loss": round(prepared.manifest.bigram_loss, 4),
        "seconds": round(time.perf_counter() - started),
        "units": {"mean": "nats", "sd": "nats", "differences": "nats", "seconds": "s"},
    }
    print(json.dumps(figures))
    assert not figures["missed"], f"further from full attention in fp32 than allowed: {figures['missed']}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

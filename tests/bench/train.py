"""How fast a training step is beside what people run: ``make bench NAME=train``.

The peer is ``transformers``: the same weights, exported, trained by the loop of ``tests/bench/peers/hf_train.py`` on the same
rows of one document each with the same AdamW and clipping, in fp32, autocast to bf16, and that compiled; each with the
fastest of its expert implementations that a short run before finds. Ours is ``Engine.train_step`` on batches of the data
room, compiled, in bf16 with fp32 masters and in fp32. The losses of five steps are compared before anything is timed, so that
nothing is skipped. Rounds interleave all, each the other way round than the one before; one thread; the time of a step is the
process's CPU time. A ratio is the median over the rounds of the ratio in a round, as a shared machine's speed drifts.

Weights are normal, 0.02, everywhere: Manta's own initial values let blocks begin as the identity. The router's bias stays
where it is, for the peer does not move it.

The time by part is that of compiled steps whose blocks are cut between the parts. Peak bytes are those of tensors in an eager
step, which is what a plan states; ``compiled_peak_tensor_bytes`` those of a compiled one.

The last line is one JSON object.
"""

import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from data.dataset import Batch, PackedDataset
from data.manifest import Cell, Count, Manifest, Segment
from data.shards import write_shard
from tests.bench.peers.hf_train import Peer, Recipe
from tests.workers.memory import peak_tensor_bytes
from workers.allocator import keep_freed_memory
from workers.compat_torch import graphs_compiled
from workers.engine import Engine
from workers.hf.config import to_config
from workers.hf.convert import exported
from workers.hf.directory import CONFIG
from workers.hf.files import write_json, write_tensors
from workers.loop import prefetch
from workers.mesh import Membership
from workers.plan import plan
from workers.spec import TrainSpec
from workers.timing import PARTS, StepTimer, Waiting

VOCABULARY, LENGTH, ROWS = 8192, 512, 4
AGREEING_STEPS = 5
ROUNDS = 9
PARTED_STEPS = 3
TARGETS = {"bf16_vs_hf_autocast": 1.4, "bf16_vs_hf_fp32": 1.8, "bf16_vs_hf_compiled": 1.2, "fp32_vs_hf_fp32": 1.1}
DATA_WAIT, OFF_PLAN = 0.01, 0.1
"""Of a step's time, what it may wait for data; of the planned bytes, how far its peak may be from them."""
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
RECIPE = Recipe(learning_rate=3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip_grad_norm=1.0)
Step = Callable[[int], float]
"""Trains on the rows of the step of that number; its loss."""


def spec(precision: str, *, compiled: bool = True) -> TrainSpec:
    """The quickstart's kind of model, at 21 million parameters."""
    return TrainSpec.model_validate(
        {
            "data_pipeline": {"sequence_length": LENGTH},
            "tokenizer": {"vocab_size": VOCABULARY},
            "model": {
                "hidden_size": 256,
                "num_hidden_layers": 8,
                "num_attention_heads": 4,
                "moe_intermediate_size": 320,
                "tie_word_embeddings": True,
                "router_bias_update_rate": 0.0,
            },
            "training": {
                "steps": 1000,
                "global_batch_size": ROWS,
                "micro_batch_size": ROWS,
                **asdict(RECIPE),
                "learning_rate_schedule": "constant",
                "warmup_steps": 0,
                "precision": precision,
                "compile": compiled,
            },
        }
    )


def shards(directory: Path, steps: int) -> PackedDataset:
    """Rows of one document each, of tokens as uneven as words are."""
    draw = np.random.default_rng(0)
    documents = np.minimum(draw.zipf(1.2, (steps * ROWS, LENGTH)) - 1, VOCABULARY - 1).tolist()
    info = write_shard(directory, "rows", documents, split="train", cell=0, row_length=LENGTH)
    count = Count(documents=info.documents, tokens=info.tokens, rows=info.rows)
    manifest = Manifest(
        hash="",
        sequence_length=LENGTH,
        vocab_size=VOCABULARY,
        bos_id=1,
        eos_id=2,
        tokenizer_checksum="",
        cells=(Cell(language="en", domain="any", weight=1.0, train=count, held_out=Count()),),
        segments=(Segment(sequence_length=LENGTH, fraction=1.0, cells=(count,)),),
        shards=(info,),
        input_files=1,
        input_bytes=info.tokens,
        documents_read=info.documents,
        drops={},
        unigram_loss=0.0,
        bigram_loss=0.0,
    )
    return PackedDataset(directory, manifest)


class Ours:
    def __init__(self, weights: dict[str, torch.Tensor], rows: Callable[[int], Batch], spec: TrainSpec) -> None:
        self.engine = Engine.build(spec, Membership(), VOCABULARY)
        with torch.no_grad():
            for name, tensor in self.engine.model.state_dict().items():
                tensor.copy_(weights[name])
        self.rows = rows
        self.graphs = 0
        """Compiled in steps after the second."""

    def __call__(self, step: int) -> float:
        before = graphs_compiled()
        loss = self.engine.train_step([self.rows(step)]).loss
        self.graphs += graphs_compiled() - before if self.engine.step > 2 else 0
        return loss


def initial_weights(engine: Engine) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    weights = {}
    for name, tensor in engine.model.state_dict().items():
        fixed = 1.0 if name.endswith("norm.weight") else 0.0 if name.endswith(".bias") else None
        weights[name] = (
            torch.full_like(tensor, fixed) if fixed is not None else torch.randn(tensor.shape, generator=draw) * 0.02
        )
    return weights


def export(weights: dict[str, torch.Tensor], directory: Path) -> None:
    model = spec("fp32").model
    tensors = dict(exported(model, VOCABULARY, weights))
    write_tensors(directory, tensors.items(), {name: tensor.shape for name, tensor in tensors.items()}, torch.float32)
    write_json(directory / CONFIG, to_config(model, VOCABULARY))


class Peers:
    def __init__(self, directory: Path, rows: Callable[[int], Batch]) -> None:
        self.directory, self.rows = directory, rows

    def make(self, experts: str, *, autocast: bool = False, compiled: bool = False) -> Step:
        peer = Peer(self.directory, RECIPE, experts=experts, autocast=autocast, compiled=compiled)
        return lambda step: peer.step(torch.from_numpy(self.rows(step).tokens).long())

    def best(self, *, autocast: bool = False, compiled: bool = False) -> str:
        """The fastest of the expert implementations, by CPU seconds of the fastest of four steps, taken in turns; the first one
        compiles.

        ``batched_mm`` is left out: it keeps a copy of the experts' matrices for every token's choice, here 32 GB.
        """
        steps = {experts: self.make(experts, autocast=autocast, compiled=compiled) for experts in ("eager", "grouped_mm")}
        rounds = [{experts: cpu_seconds(step, i) for experts, step in steps.items()} for i in range(4)]
        seconds = {experts: min(each[experts] for each in rounds) for experts in steps}
        torch.compiler.reset()
        mode = ("autocast" if autocast else "fp32") + (", compiled" if compiled else "")
        say(f"transformers in {mode}: " + ", ".join(f"{experts} {value:.2f} s a step" for experts, value in seconds.items()))
        return min(seconds, key=lambda experts: seconds[experts])


def cpu_seconds(step: Step, number: int) -> float:
    before = time.process_time()
    step(number)
    return time.process_time() - before


def require_agreement(losses: dict[str, list[float]]) -> dict[str, float]:
    """The largest difference between our losses and the peer's, in each precision."""
    pairs = {"fp32": ("fp32", ["hf_fp32"]), "bf16": ("bf16", ["hf_autocast", "hf_compiled"])}
    found = dict.fromkeys(pairs, 0.0)
    for precision, (ours, peers) in pairs.items():
        for peer in peers:
            apart = max(abs(a - b) for a, b in zip(losses[ours], losses[peer], strict=True))
            assert apart <= TOLERANCE[precision], f"{precision}: {losses[ours]} here, {losses[peer]} in {peer}"
            found[precision] = max(found[precision], apart)
        assert losses[ours][-1] < losses[ours][0] - 0.1, f"nothing is learned: {losses[ours]}"
    return found


def race(contenders: dict[str, Step]) -> tuple[dict[str, list[float]], dict[str, float]]:
    """CPU seconds of a step of each, by round, and how far the losses of the first steps are apart."""
    losses: dict[str, list[float]] = {name: [] for name in contenders}
    for name, step in contenders.items():
        before = time.perf_counter()
        losses[name] = [step(i) for i in range(AGREEING_STEPS)]
        say(f"{name}: losses {losses[name][0]:.5f} to {losses[name][-1]:.5f}, {time.perf_counter() - before:.0f} s")
    apart = require_agreement(losses)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(ROUNDS):
        for name, step in list(contenders.items())[:: -1 if i % 2 else 1]:
            seconds[name].append(cpu_seconds(step, AGREEING_STEPS + i))
        say(f"round {i + 1}: " + ", ".join(f"{name} {values[-1]:.3f} s" for name, values in seconds.items()))
    return seconds, apart


def ratio(seconds: dict[str, list[float]], key: str) -> float:
    """Of ``ours_vs_peer``: the peer's time over ours, the median over the rounds."""
    mine, peer = key.split("_vs_")
    return median(b / a for a, b in zip(seconds[mine], seconds[peer], strict=True))


def by_part(ours: Ours, dataset: PackedDataset, first: int) -> dict[str, float]:
    """Shares of the CPU time of steps in a row, and of their wall time that was spent waiting for data."""
    timer = StepTimer(torch.device("cpu"), compiled=True, clock=time.process_time)
    total = dict.fromkeys(PARTS, 0.0)
    for i in range(2 + PARTED_STEPS):
        with timer:
            ours(first + i)
        if i >= 2:
            total = {part: total[part] + seconds for part, seconds in timer.seconds().items()}
    whole = sum(total.values())

    batches = Waiting(prefetch(lambda step: batch_of(dataset, step), range(first, first + 2 * PARTED_STEPS)))
    waited, before = 0.0, time.perf_counter()
    for batch in batches:
        waited += batches.seconds
        ours.engine.train_step([batch])
    waited /= time.perf_counter() - before
    return {**{f"part_{part}_share": round(seconds / whole, 4) for part, seconds in total.items()}, "data_wait_share": waited}


def resident(engine: Engine) -> list[torch.Tensor]:
    """What lives between steps."""
    state = engine.state_dict()
    return [*state["model"].values(), *(t for moments in state["optimizer"].values() for t in moments.values())]


def memory(weights: dict[str, torch.Tensor], rows: Callable[[int], Batch], compiled: Ours) -> dict[str, float]:
    asked = spec("bf16", compiled=False)
    eager, planned = Ours(weights, rows, asked), plan(asked).memory.total
    eager(0)
    peak = peak_tensor_bytes(lambda: eager(1), resident(eager.engine))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        compiled(1)
    live = top = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            top = max(top, live)
    figures = {"peak_tensor_bytes": peak, "planned_bytes": planned, "peak_over_plan": round(peak / planned, 3)}
    return figures | {"compiled_peak_tensor_bytes": top + sum(t.nbytes for t in resident(compiled.engine))}


def batch_of(dataset: PackedDataset, step: int) -> Batch:
    return dataset.rows("train", range(step * ROWS, (step + 1) * ROWS))


def measure(directory: Path) -> dict[str, Any]:
    dataset = shards(directory, AGREEING_STEPS + ROUNDS + 2 * PARTED_STEPS)
    dataset.rows("train", range(1))  # its checksum is verified here

    def rows(step: int) -> Batch:
        return batch_of(dataset, step)

    weights = initial_weights(Engine.build(spec("fp32", compiled=False), Membership(), VOCABULARY))
    export(weights, directory)
    peers = Peers(directory, rows)
    experts = {
        "fp32": peers.best(),
        "autocast": peers.best(autocast=True),
        "compiled": peers.best(autocast=True, compiled=True),
    }
    ours = {precision: Ours(weights, rows, spec(precision)) for precision in ("bf16", "fp32")}
    seconds, apart = race(
        {
            **ours,
            "hf_fp32": peers.make(experts["fp32"]),
            "hf_autocast": peers.make(experts["autocast"], autocast=True),
            "hf_compiled": peers.make(experts["compiled"], autocast=True, compiled=True),
        }
    )
    recompiles = sum(each.graphs for each in ours.values())
    assert not recompiles, f"{recompiles} graphs were compiled after the second step"
    figures: dict[str, Any] = {"bench": "train", "peer": f"transformers {transformers.__version__}, Glm4MoeForCausalLM"}
    figures |= {key: round(ratio(seconds, key), 3) for key in TARGETS}
    medians = {name: median(values) for name, values in seconds.items()}
    figures |= {f"{name}_tokens_per_second": round(ROWS * LENGTH / value, 1) for name, value in medians.items()}
    figures |= {f"{name}_step_seconds": round(value, 4) for name, value in medians.items()}
    figures |= {f"{precision}_loss_difference": value for precision, value in apart.items()}
    figures |= {f"hf_{mode}_experts": name for mode, name in experts.items()}
    say("time by part, and memory")
    figures |= memory(weights, rows, ours["bf16"])
    figures |= by_part(ours["bf16"], dataset, AGREEING_STEPS + ROUNDS)
    return figures | {"recompiles": recompiles, "rounds": ROUNDS, "threads": torch.get_num_threads()}


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    keep_freed_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="manta-bench-") as directory:
        figures = measure(Path(directory))
    for part in PARTS:
        say(f"{part:10} {figures[f'part_{part}_share']:6.1%}")
    wrong = [key for key, least in TARGETS.items() if figures[key] < least]
    wrong += ["data_wait_share"] * (figures["data_wait_share"] >= DATA_WAIT)
    wrong += ["peak_over_plan"] * (abs(figures["peak_over_plan"] - 1) > OFF_PLAN)
    missed = {key: figures[key] for key in wrong}
    figures |= {
        "targets": TARGETS,
        "missed": missed,
        "torch": torch.__version__,
        "units": {
            "vs": "the peer's CPU time a step / Manta's, median of the rounds' ratios",
            "step_seconds": "CPU seconds, median",
            "tokens_per_second": "tokens / CPU second, one thread",
            "share": "of a step's time",
            "bytes": "bytes",
            "difference": "nats, the largest of five steps",
        },
    }
    print(json.dumps(figures))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

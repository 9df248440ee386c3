"""What the loader gives one process: ``make bench NAME=loader``; part of ``make bench NAME=data``.

A shard set of about 1 GB as a preparation leaves it: shards of 512 documents, whose lengths are log-normal with a median of 400
tokens, packed into rows of 2,048, in four cells. Then, as a training process does, on one thread and in turn:

- the first global batch, from opening the data set: manifest read, order computed, every shard that it touches mapped and its
  checksum verified. The page cache is warm, as the shards have just been written;
- batches of the rest of the run for some seconds: tokens, document ids, positions and the mask of targets. Shards are verified
  when they are first met, so rates are given with that and without.

The last line is one JSON object.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from data.curriculum import BatchSizes, Curriculum
from data.dataset import PackedDataset
from data.files import checksum
from data.manifest import FILE_NAME, TOKENIZER_NAME, Cell, Count, Manifest, Segment, ShardInfo
from data.shards import write_shard
from data.steps import StepOrder

CELLS = [("en", "web", 45.0), ("zh", "web", 35.0), ("en", "code", 15.0), ("zh", "papers", 5.0)]
LENGTH, MEDIAN_TOKENS, VOCABULARY = 2048, 400, 32_000
SHARDS, SHARD_DOCUMENTS = 900, 512
GLOBAL_BATCH, MICRO_BATCH = 256, 8
STEPS = 120


def shard_set(directory: Path, shards: int = SHARDS) -> Manifest:
    """Writes it. The lengths of documents are drawn, the tokens are the same ones again and again."""
    draw = np.random.default_rng(0)
    text = draw.integers(3, VOCABULARY, 1 << 20, dtype=np.uint32)
    infos: list[ShardInfo] = []
    for number in range(shards):
        lengths = np.clip(draw.lognormal(np.log(MEDIAN_TOKENS), 0.8, SHARD_DOCUMENTS), 16, 8 * LENGTH).astype(int)
        starts = draw.integers(0, len(text) - 8 * LENGTH, SHARD_DOCUMENTS)
        documents = [text[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        cell = number * len(CELLS) // shards
        infos.append(write_shard(directory, f"shards/{number:06}.u32", documents, split="train", cell=cell, row_length=LENGTH))
    (directory / TOKENIZER_NAME).write_bytes(b"none")
    counts = [
        Count(
            documents=sum(info.documents for info in infos if info.cell == cell),
            tokens=sum(info.tokens for info in infos if info.cell == cell),
            rows=sum(info.rows for info in infos if info.cell == cell),
        )
        for cell in range(len(CELLS))
    ]
    manifest = Manifest(
        hash="loader",
        sequence_length=LENGTH,
        vocab_size=VOCABULARY,
        bos_id=1,
        eos_id=2,
        tokenizer_checksum=checksum(directory / TOKENIZER_NAME),
        cells=tuple(
            Cell(language=language, domain=domain, weight=weight, train=count, held_out=Count())
            for (language, domain, weight), count in zip(CELLS, counts, strict=True)
        ),
        segments=(Segment(sequence_length=LENGTH, fraction=1.0, cells=tuple(counts)),),
        shards=tuple(infos),
        input_files=1,
        input_bytes=1,
        documents_read=shards * SHARD_DOCUMENTS,
        drops={},
        unigram_loss=0.0,
        bigram_loss=0.0,
    )
    (directory / FILE_NAME).write_text(manifest.model_dump_json())
    return manifest


def figures(directory: Path) -> dict[str, Any]:
    """Of the shard set in ``directory``."""
    began = time.perf_counter()
    dataset = PackedDataset.open(directory)
    course = Curriculum(
        [LENGTH], [1.0], MICRO_BATCH, BatchSizes(GLOBAL_BATCH // MICRO_BATCH, GLOBAL_BATCH // MICRO_BATCH, 0), STEPS
    )
    order = StepOrder(dataset.manifest, 0, course)
    masked = take(dataset, order, 0)
    first = time.perf_counter() - began

    cold = _rate(dataset, order, range(1, STEPS // 2))
    warm = _rate(dataset, order, range(STEPS // 2, STEPS))
    return {
        "loader_shard_set_gb": round(sum((directory / info.file).stat().st_size for info in dataset.manifest.shards) / 1e9, 3),
        "loader_shards": len(dataset.manifest.shards),
        "loader_first_batch_seconds": round(first, 3),
        "loader_first_batch_rows": GLOBAL_BATCH,
        "loader_tokens_per_second_verifying": round(cold),
        "loader_tokens_per_second": round(warm),
        "loader_target_share": round(masked / (GLOBAL_BATCH * (LENGTH - 1)), 4),
        "loader_row_length": LENGTH,
        "loader_peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def take(dataset: PackedDataset, order: StepOrder, step: int) -> int:
    """Builds every micro-batch of a step; the number of targets."""
    return sum(int(dataset.rows("train", *each).target_mask.sum()) for each in order.micro_batches(step))


def _rate(dataset: PackedDataset, order: StepOrder, steps: range) -> float:
    """Tokens a second of CPU time: what another process does meanwhile is not the loader's."""
    began = time.process_time()
    for step in steps:
        take(dataset, order, step)
    return len(steps) * GLOBAL_BATCH * LENGTH / (time.process_time() - began)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="manta-bench-") as scratch:
        print("writing the shard set", file=sys.stderr)
        shard_set(Path(scratch))
        print(json.dumps(figures(Path(scratch)), indent=1), file=sys.stderr)
        print(json.dumps(figures(Path(scratch))))


if __name__ == "__main__":
    main()

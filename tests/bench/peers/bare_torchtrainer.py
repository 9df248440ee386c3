"""The peer: what a competent user writes with Ray Train alone, for the same model, shards, order of samples and steps.

    python bare_torchtrainer.py '{"prepared": DIR, "spec": {TrainSpec}, "steps_file": FILE, "storage": DIR}'

Stock ``TorchTrainer`` and ``prepare_model``; a checkpoint is reported at the end, as its documentation shows. Rank 0 appends
the time at which each optimizer step was done to ``steps_file``.
"""

import json
import os
import sys
import tempfile
import time

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train_fn(config: dict) -> None:
    from pathlib import Path

    from data.dataset import PackedDataset
    from data.order import SampleOrder
    from data.tokenizer import Tokenizer
    from workers.model.decoder import Decoder
    from workers.model.init import initial_value
    from workers.model.inputs import packed_rows
    from workers.model.loss import IGNORED
    from workers.schedule import learning_rate
    from workers.spec import TrainSpec

    spec = TrainSpec.model_validate(config["spec"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(spec.gpu_config.cpus_per_worker)

    dataset = PackedDataset.open(Path(config["prepared"]))
    order = SampleOrder(dataset.manifest, seed=spec.training.seed, global_batch_size=spec.training.global_batch_size)
    vocab_size = Tokenizer.load(dataset.tokenizer_path).vocab_size

    decoder = Decoder(spec.model, vocab_size, torch.float32)
    with torch.no_grad():
        for name, tensor in {**dict(decoder.named_parameters()), **dict(decoder.named_buffers())}.items():
            tensor.copy_(initial_value(spec.model, spec.training.seed, name, tensor.shape))
    model = ray.train.torch.prepare_model(decoder)
    training = spec.training
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=training.learning_rate,
        betas=training.betas,
        eps=training.eps,
        weight_decay=training.weight_decay,
        fused=True,
    )
    share = training.global_batch_size // world_size
    accumulation = share // training.micro_batch_size
    for step in range(spec.total_steps):
        mine = order.batch(step)[rank * share : (rank + 1) * share]
        for i in range(accumulation):
            rows = dataset.rows("train", mine[i * training.micro_batch_size : (i + 1) * training.micro_batch_size])
            inputs = packed_rows(spec.model, rows, torch.device("cpu"), torch.float32)
            output = model(inputs)
            loss = output.objective / (inputs.targets_BT != IGNORED).sum()
            (loss / accumulation).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step, spec.total_steps)
        optimizer.step()
        optimizer.zero_grad()
        for layer, counts_E in zip(decoder.experts, output.counts_LE, strict=True):
            layer.update_bias(counts_E, spec.model.router_bias_update_rate)
        if rank == 0:
            with open(config["steps_file"], "a") as file:
                file.write(json.dumps({"step": step + 1, "time": time.time(), "loss": loss.item()}) + "\n")

    with tempfile.TemporaryDirectory() as directory:
        checkpoint = None
        if rank == 0:
            torch.save({"model": decoder.state_dict(), "optimizer": optimizer.state_dict()}, os.path.join(directory, "state.pt"))
            checkpoint = Checkpoint.from_directory(directory)
        ray.train.report({"loss": loss.item()}, checkpoint=checkpoint)


def main() -> None:
    config = json.loads(sys.argv[1])
    trainer = TorchTrainer(
        train_fn,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=config["num_workers"]),
        run_config=RunConfig(name="bare", storage_path=config["storage"]),
    )
    trainer.fit()


if __name__ == "__main__":
    main()

"""The learning-rate schedule and the optimizer."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from workers.spec import TrainingSpec


def learning_rate(training: TrainingSpec, step: int, total_steps: int) -> float:
    """The rate of optimizer step ``step`` (from 0): linear up over ``warmup_steps``, then a cosine down to the floor, which
    the last step reaches."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    floor = training.learning_rate * training.min_learning_rate_ratio
    progress = (step - training.warmup_steps + 1) / max(total_steps - training.warmup_steps, 1)
    return floor + (training.learning_rate - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def make_optimizer(model: nn.Module, training: TrainingSpec) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) with its state in place from the start; weight decay on matrices only."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, eps=training.eps, fused=True)
    for p in parameters:
        count = torch.zeros((), dtype=torch.float32, device=p.device)
        optimizer.state[p] = {"step": count, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a distributed tensor; the tensor itself otherwise. Shares memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_gradients(parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    return [local(p.grad) for p in parameters if p.grad is not None]


def squared_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Sum of squares, a scalar in fp64. Over disjoint shards these add up to the square of the whole gradient's norm."""
    return nn.utils.get_total_norm(tensors).double().square()

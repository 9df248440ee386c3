"""The optimizer."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from workers.schedule import Betas, learning_rate
from workers.spec import TrainingSpec


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


class Course:
    """Sets an optimizer to each step's learning rate and betas."""

    def __init__(self, optimizer: torch.optim.AdamW, training: TrainingSpec, total_steps: int) -> None:
        self._optimizer, self._training, self._total_steps = optimizer, training, total_steps
        self._decay = [group["weight_decay"] for group in optimizer.param_groups]
        self._betas = Betas(training, total_steps)

    def set(self, step: int) -> float:
        """For optimizer step ``step`` (from 0), which is to be taken next. Returns its learning rate.

        torch corrects the moments' bias by ``1 - beta ** t``; where the betas change it has to be one minus their product.
        Rate, eps and decay are scaled so that torch's own fused kernel computes exactly that.
        """
        rate = learning_rate(self._training, step, self._total_steps)
        moments = self._betas.at(step)
        (first, second), (first_product, second_product) = moments.betas, moments.products
        stretch = math.sqrt((1 - second_product) / (1 - second ** (step + 1)))
        factor = stretch * (1 - first ** (step + 1)) / (1 - first_product)
        for group, decay in zip(self._optimizer.param_groups, self._decay, strict=True):
            group["lr"], group["betas"] = rate * factor, moments.betas
            group["eps"], group["weight_decay"] = self._training.eps * stretch, decay / factor
        return rate


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a distributed tensor; the tensor itself otherwise. Shares memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_gradients(parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    return [local(p.grad) for p in parameters if p.grad is not None]


def squared_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Sum of squares, a scalar in fp64. Over disjoint shards these add up to the square of the whole gradient's norm."""
    return nn.utils.get_total_norm(tensors).double().square()

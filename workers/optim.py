"""The optimizer: AdamW, or Muon for the matrices inside the blocks and AdamW for the rest; moments in fp32 or bf16."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import xxhash
from torch import nn
from torch.distributed.tensor import DTensor

from workers.muon import Muon, logical_matrices
from workers.random import Part, element_indices, fold, random_bits, round_to_bf16
from workers.schedule import Betas, learning_rate
from workers.spec import TrainingSpec

CHUNK_ELEMENTS = 2**18
"""A CPU works through a parameter in pieces whose intermediate results stay in its cache (measured: 5 times faster)."""


class Optimizers:
    """Several optimizers that act as one: their groups in a row, one state. Each parameter's state is in place from the start:
    ``step``, the number of steps taken, and its moments."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        self.param_groups: list[dict[str, Any]] = [group for part in parts for group in part.param_groups]
        self.state: defaultdict[torch.Tensor, dict[str, torch.Tensor]] = defaultdict(dict)
        for part in parts:
            self.state.update(part.state)
            part.state = self.state

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()


def make_optimizer(model: nn.Module, training: TrainingSpec) -> Optimizers:
    """By ``training.optimizer``. Weight decay on matrices only."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    moments_dtype = torch.bfloat16 if training.moments_dtype == "bf16" else torch.float32
    parts: list[torch.optim.Optimizer] = []
    if training.optimizer == "muon":
        splits = logical_matrices(model)
        if not splits:
            raise ValueError(f"{type(model).__name__} names no logical matrices, so Muon would have nothing to do")
        matrices = {name: named.pop(name) for name in splits}
        common = {"weight_decay": training.weight_decay, "momentum": training.muon_momentum}
        parts = [Muon(matrices, splits, lr=training.learning_rate, moments_dtype=moments_dtype, seed=training.seed, **common)]
    groups = [
        {"params": [(name, p) for name, p in named.items() if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [(name, p) for name, p in named.items() if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {"lr": training.learning_rate, "betas": training.betas, "eps": training.eps}
    if groups:
        bf16 = moments_dtype == torch.bfloat16
        parts.append(RoundedAdamW(groups, seed=training.seed, **options) if bf16 else _fused_adamw(groups, options))
    return Optimizers(*parts)


def _fused_adamw(groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101), one pass over each parameter."""
    optimizer = torch.optim.AdamW(groups, **options, fused=True)
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        count = torch.zeros((), dtype=torch.float32, device=p.device)
        optimizer.state[p] = {"step": count, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


class _Rates(NamedTuple):
    """One AdamW step's numbers, worked out in fp64."""

    first: float
    first_rest: float
    second: float
    second_rest: float
    eps: float
    stretch: float
    """1 / sqrt(1 - beta2 ** t)"""
    rate: float
    """lr / (1 - beta1 ** t)"""
    keep: float
    """What weight decay leaves."""

    @classmethod
    def of(cls, group: dict[str, Any], step: int) -> "_Rates":
        (first, second), lr = group["betas"], group["lr"]
        stretch, rate = 1 / math.sqrt(1 - second**step), lr / (1 - first**step)
        return cls(first, 1 - first, second, 1 - second, group["eps"], stretch, rate, 1 - lr * group["weight_decay"])


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW whose moments rest in bf16: half the memory and less traffic. Parameters and arithmetic are fp32.

    Rounded to the nearest, a second moment could not move at all: with beta2 0.999 its change is below half of bf16's spacing.
    So both are rounded stochastically (mean exact), by a draw of (``seed``, parameter's name, step, element's place in the
    whole parameter): neither a restart nor the mesh changes it. Groups are named, ``(name, parameter)``.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, seed: int) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._seed = seed
        for p in (p for group in self.param_groups for p in group["params"]):
            moments = {name: torch.zeros_like(p, dtype=torch.bfloat16) for name in ("exp_avg", "exp_avg_sq")}
            self.state[p] = {"step": torch.zeros(()), **moments}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for name, p in zip(group["param_names"], group["params"], strict=True):
                if p.grad is None or local(p).numel() == 0:
                    continue
                state = self.state[p]
                state["step"] += 1
                step = int(state["step"])
                key = fold(self._seed, xxhash.xxh64_intdigest(name.encode()), step)
                tensors = [local(t) for t in (p, p.grad, state["exp_avg"], state["exp_avg_sq"])]
                _update(tensors, element_indices(p), key, _Rates.of(group, step))


def _update(tensors: Sequence[torch.Tensor], indices: Sequence[torch.Tensor], key: Part, rates: _Rates) -> None:
    if tensors[0].is_cuda:
        _compiled()(tensors, indices, torch.as_tensor(key), rates)
        return
    rows = max(1, CHUNK_ELEMENTS * len(tensors[0]) // tensors[0].numel())
    for *chunk, index in zip(*(t.split(rows) for t in (*tensors, indices[0])), strict=True):
        _adamw(chunk, (index, *indices[1:]), key, rates)


@cache
def _compiled() -> Any:
    """In one kernel. The sizes and the rates are arguments of it: it is compiled once for each number of dimensions."""
    return torch.compile(_adamw, dynamic=True)


def _adamw(
    tensors: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor],
    key: Part,
    rates: _Rates,
) -> None:
    p, gradient, exp_avg, exp_avg_sq = tensors
    m = exp_avg.float() * rates.first + gradient * rates.first_rest
    v = exp_avg_sq.float() * rates.second + gradient * gradient * rates.second_rest
    bits = random_bits(key, *indices)
    exp_avg.copy_(round_to_bf16(m, bits))
    exp_avg_sq.copy_(round_to_bf16(v, bits >> 16))
    p.mul_(rates.keep).sub_(rates.rate * m / (v.sqrt() * rates.stretch + rates.eps))


class Course:
    """Sets each step's learning rate, for Muon's groups too, and Adam's betas."""

    def __init__(self, optimizer: Optimizers, training: TrainingSpec, total_steps: int) -> None:
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
            group["lr"] = rate
            if "betas" in group:
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

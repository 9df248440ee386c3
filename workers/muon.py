"""Muon: momentum, each matrix of which is replaced by the nearest orthogonal one before it is added to the weights.

Legend: N matrices of one shape, R rows, C columns.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import xxhash
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from workers.random import element_indices, random_bits, round_to_bf16

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5 (Jordan 2024): steepest at 0, and after 5 rounds singular values from 0.003 up lie in
[0.68, 1.21]."""
ROUNDS = 5
SMALLEST_NORM = 1e-12
UPDATE_RMS = 0.2
"""What AdamW's updates have, so that its learning rate and weight decay serve (Moonlight, arXiv 2502.16982)."""
BATCH_ELEMENTS = 2**26
"""As many are orthogonalised together, so that small matrices fill the device and large ones do not fill its memory."""


@dataclass(frozen=True)
class Matrices:
    """Logical matrices of one shape inside a parameter. Dimensions of ``view``, an alias of the parameter's memory: first
    ``batch`` that count matrices, then all that together are a matrix's rows, last its columns."""

    view: torch.Tensor
    batch: int = 0

    @property
    def count(self) -> int:
        return math.prod(self.view.shape[: self.batch])

    @property
    def shape(self) -> tuple[int, int]:
        return math.prod(self.view.shape[self.batch : -1]), self.view.shape[-1]


Split = Callable[[torch.Tensor], Sequence[Matrices]]
"""Views that together cover a tensor of a parameter's whole shape, each element once."""


def logical_matrices(model: nn.Module) -> dict[str, Split]:
    """By parameter name, how it splits. A module that owns matrices says so itself: ``logical_matrices() -> dict[str, Split]``,
    by the names of its own parameters. What no module names (embedding, head, router, norms) is not for Muon."""
    return {
        f"{prefix}.{name}" if prefix else name: split
        for prefix, module in model.named_modules()
        for name, split in getattr(module, "logical_matrices", dict)().items()
    }


def newton_schulz(x_NRC: torch.Tensor) -> torch.Tensor:
    """U S' V^T for each matrix U S V^T, S' near one; in the type of ``x_NRC``. A zero matrix stays zero.

    Jordan et al. 2024, kellerjordan.github.io/posts/muon: an odd quintic, iterated on the matrix over its Frobenius norm.
    """
    if x_NRC.shape[1] > x_NRC.shape[2]:
        return newton_schulz(x_NRC.mT).mT
    a, b, c = QUINTIC
    x_NRC = x_NRC / torch.linalg.vector_norm(x_NRC, dim=(1, 2), keepdim=True, dtype=torch.float32).clamp_min(SMALLEST_NORM).to(
        x_NRC.dtype
    )
    for _ in range(ROUNDS):
        gram_NRR = x_NRC @ x_NRC.mT
        gram_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, gram_NRR, x_NRC, beta=a)
    return x_NRC


def orthogonalise_(matrices: Sequence[Matrices]) -> None:
    """In place: each matrix becomes nearly orthogonal, with the root mean square ``UPDATE_RMS`` (at full rank)."""
    by_shape: dict[tuple[int, int], list[Matrices]] = {}
    for m in matrices:
        by_shape.setdefault(m.shape, []).append(m)
    for (rows, columns), same in by_shape.items():
        x_NRC = newton_schulz(torch.cat([m.view.reshape(m.count, rows, columns) for m in same]))
        x_NRC *= UPDATE_RMS * math.sqrt(max(rows, columns))
        for m, part in zip(same, x_NRC.split([m.count for m in same]), strict=True):
            m.view.copy_(part.reshape(m.view.shape))


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised by logical matrix, and decoupled weight decay.

    ``parameters`` by name, each with its split in ``splits``; any may be sharded (DTensor). A sharded one's update is gathered
    for the orthogonalisation; its momentum stays sharded. Momentum in bf16 is rounded stochastically by (``seed``, name, step,
    element), so that neither a restart nor the mesh changes it.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        splits: Mapping[str, Split],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        moments_dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__(list(parameters.items()), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._splits, self._seed = splits, seed
        for p in parameters.values():
            self.state[p] = {"step": torch.zeros(()), "momentum_buffer": torch.zeros_like(p, dtype=moments_dtype)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for batch in _batches(dict(zip(group["param_names"], group["params"], strict=True))):
                updates = {name: self._momentum(name, p, group["momentum"]) for name, p in batch.items()}
                orthogonalise_([m for name, update in updates.items() for m in self._split(name, update)])
                for name, p in batch.items():
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(_as(updates.pop(name), p), alpha=-group["lr"])

    def _momentum(self, name: str, p: nn.Parameter, momentum: float) -> torch.Tensor:
        """The moving average takes in the gradient; the whole update, still to be orthogonalised, in the type for that."""
        state, gradient = self.state[p], p.grad
        assert gradient is not None
        state["step"] += 1
        average = gradient.lerp(state["momentum_buffer"].float(), momentum)
        update = gradient.lerp(average, momentum)
        self._keep(name, state, average)
        # bf16 is enough for an iteration that ends near one, and half the traffic; CPUs multiply fp32 as well.
        update = update.to(torch.bfloat16 if update.device.type == "cuda" else torch.float32)
        return update.full_tensor() if isinstance(update, DTensor) else update

    def _keep(self, name: str, state: dict[str, torch.Tensor], average: torch.Tensor) -> None:
        buffer = state["momentum_buffer"]
        if buffer.dtype == torch.bfloat16:
            mine, average = (x.to_local() if isinstance(x, DTensor) else x for x in (buffer, average))
            bits = random_bits(self._seed, xxhash.xxh64_intdigest(name.encode()), int(state["step"]), *element_indices(buffer))
            mine.copy_(round_to_bf16(average, bits))
        else:
            buffer.copy_(average)

    def _split(self, name: str, update: torch.Tensor) -> Sequence[Matrices]:
        matrices = self._splits[name](update)
        storage = update.untyped_storage().data_ptr()
        if any(m.view.untyped_storage().data_ptr() != storage for m in matrices):
            raise ValueError(f"logical matrices of {name}: a copy, not a view of the parameter; let Matrices join the rows")
        if sum(m.view.numel() for m in matrices) != update.numel():
            raise ValueError(f"logical matrices of {name} do not cover its shape {tuple(update.shape)} once")
        return matrices


def _batches(parameters: Mapping[str, nn.Parameter]) -> Iterator[dict[str, nn.Parameter]]:
    """In order, up to ``BATCH_ELEMENTS`` together (or one alone); those without a gradient are left out."""
    batch: dict[str, nn.Parameter] = {}
    for name, p in parameters.items():
        if p.grad is None:
            continue
        if batch and p.numel() + sum(other.numel() for other in batch.values()) > BATCH_ELEMENTS:
            yield batch
            batch = {}
        batch[name] = p
    if batch:
        yield batch


def _as(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``whole`` sharded as ``like`` is; each rank takes its own part."""
    if isinstance(like, DTensor):
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return whole

"""One optimizer step over whatever ranks there are: build, step, hand the state over, tear down, build again.

Legend: R rows of a micro-batch, T positions, V vocabulary, L mixture-of-experts layers, E experts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from data.dataset import Batch
from data.errors import MantaError
from workers import timing
from workers.activations import checkpointing
from workers.mesh import Membership, Mesh
from workers.model.decoder import Decoder, Objective, Output
from workers.model.init import initial_value
from workers.model.inputs import Input, packed_rows, whole_rows, without_context
from workers.model.loss import IGNORED
from workers.optim import Course, local, local_gradients, make_optimizer, squared_norm
from workers.recipe_state import RecipeState
from workers.recompute import apply_recompute
from workers.spec import TrainSpec

COMPUTE_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

KEEP_GATHERED_BYTES = 2**30
"""Models smaller than this are gathered once a step, and stay so from its first forward pass to its last backward pass."""

MOST_GRAPHS = 64
"""Of a block's code, at most so many by torch.compile: one for each kind of layer, form of attention, length of rows, and for
training or evaluation. Beyond torch's own limit of 8 it would run the rest uncompiled and say nothing."""


class TrainingDiverged(MantaError):
    """The loss or the gradient has not been a number for more steps than are skipped. None of them was applied."""

    code: ClassVar[str] = "training_diverged"
    status: ClassVar[int] = 409


@dataclass(frozen=True)
class StepResult:
    """The same on every rank."""

    loss: float
    """Mean cross-entropy over the global batch's targets, nats."""
    grad_norm: float
    """Before clipping."""
    applied: bool
    """False: the loss or the gradient was no number, and the weights are as they were."""
    learning_rate: float
    targets: int
    counts_LE: torch.Tensor
    """Valid tokens of the global batch that chose each expert, in host memory."""
    signal: int
    """The sum of what the ranks passed as ``signal``."""
    balance: float
    """The routers' balance losses, summed over layers."""
    further_loss: float
    """Of multi-token prediction."""


class Engine:
    """A model, its optimizer and the mesh that they live on. Every method is called by all ranks together."""

    def __init__(self, spec: TrainSpec, mesh: Mesh, model: Decoder) -> None:
        self.spec, self.mesh, self.model = spec, mesh, model
        self.optimizer = make_optimizer(model, spec.training)
        self.course = Course(self.optimizer, spec.training, spec.total_steps)
        self.step = 0
        """Steps taken, skipped ones among them: the cursor of the whole run."""
        self.recipe = RecipeState.start(spec)
        self.keeps_gathered = _keeps_gathered(model)

    @classmethod
    def build(
        cls, spec: TrainSpec, membership: Membership, vocab_size: int, state: Mapping[str, Any] | None = None
    ) -> "Engine":
        """Form the group, shard the model over it and fill it: from the seed, or from ``state``, an earlier engine's
        ``full_state()`` whatever its mesh was."""
        mesh = Mesh.form(membership, use_gpu=spec.gpu_config.gpus_per_node > 0)
        if mesh.device.type == "cpu":
            torch.set_num_threads(spec.gpu_config.cpus_per_worker)
        training, dtype = spec.training, COMPUTE_TYPES[spec.training.precision]
        with torch.device("meta"):
            objective = Objective(training.label_smoothing, training.focal_gamma, training.compile)
            model = Decoder(spec.model, vocab_size, dtype, objective)
        modes = checkpointing(spec, mesh.device, dtype, gathered=mesh.workers is not None)
        apply_recompute(model.all_blocks, modes)
        if training.compile:
            torch.compiler.config.recompile_limit = MOST_GRAPHS
            for block in model.all_blocks:
                block.compile()
        if mesh.workers is not None:
            _shard(model, mesh, dtype)
        model.to_empty(device=mesh.device)
        engine = cls(spec, mesh, model)
        if state is not None:
            engine.load_state_dict(state)
        else:
            engine._initialise()
        return engine

    def train_step(self, micro_batches: Sequence[Batch | None], *, signal: int = 0) -> StepResult:
        """One optimizer step from this rank's micro-batches, as many as every other rank's; None is one without weight.

        Loss and gradients are weighted by targets over the whole global batch. All that the ranks must agree on (loss, norm,
        expert counts, ``signal``) travels in one all-reduce. A step whose loss or gradient is no number is skipped: it counts,
        and changes nothing. Raises ``TrainingDiverged`` after more of these in a row than ``training.max_skipped_steps``.
        """
        sums, counts_LE = self._backward(micro_batches)
        timing.enter("optimizer")
        gradients = local_gradients(self.model.parameters())
        extra = torch.tensor([float(signal)], dtype=torch.float64, device=self.mesh.device)
        agreed = self.mesh.sum(torch.cat([sums, squared_norm(gradients)[None], extra, counts_LE.flatten()])).cpu()
        loss_sum, targets, balance, further, square, signals = agreed[:6].tolist()
        counts_LE = agreed[6:].view_as(counts_LE)
        targets = max(targets, 1.0)
        # The gradients are of the sum of all losses times these two.
        weight = 1.0 / (targets * self._nominal_weight * self.recipe.scale)
        norm = math.sqrt(square) * weight if math.isfinite(square) else square
        applied = math.isfinite(norm) and math.isfinite(loss_sum)
        rate = self.course.set(self.recipe.updates)
        if applied:
            factor = weight * min(1.0, self.spec.training.clip_grad_norm / (norm + 1e-6))
            for gradient in gradients:
                gradient.mul_(factor)
            self.optimizer.step()
            for layer, counts in zip(self.model.experts, counts_LE, strict=True):
                layer.update_bias(counts, self.spec.model.router_bias_update_rate)
        self.optimizer.zero_grad()
        self.recipe = self.recipe.after_step(applied)
        self._require_recovery(loss_sum / targets, norm)
        self.step += 1
        parts = (balance / targets, further / targets)
        return StepResult(loss_sum / targets, norm, applied, rate, int(targets), counts_LE.long(), int(signals), *parts)

    def _backward(self, micro_batches: Sequence[Batch | None]) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of all micro-batches. This rank's sums (cross-entropy, targets, balance losses, cross-entropy of further
        tokens) and expert counts [L, E], in fp64 on the device."""
        device = self.mesh.device
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        counts_LE = torch.zeros(len(self.model.experts), self.spec.model.n_routed_experts, dtype=torch.float64, device=device)
        scale = self._nominal_weight * self.recipe.scale
        for i, batch in enumerate(micro_batches):
            if isinstance(self.model, FSDPModule):
                # Gradients of a small model are summed over ranks once a step; of a large one no rank could hold the whole.
                last = i == len(micro_batches) - 1 or not self.keeps_gathered
                self.model.set_requires_gradient_sync(last)
                self.model.set_reshard_after_backward(last)
            inputs = self.inputs(batch)
            output: Output = self.model(inputs)
            (output.objective * scale).backward()
            targets = (inputs.targets_BT != IGNORED).sum()
            parts = (output.cross_entropy, targets, output.balance, output.further)
            sums += torch.stack([part.double() for part in parts])
            counts_LE += output.counts_LE
        return sums, counts_LE

    @property
    def _nominal_weight(self) -> float:
        """Any constant does here: the true weight, one over the number of targets, is known only after the all-reduce."""
        return 1.0 / (self.spec.training.global_batch_size * self.spec.data_pipeline.row_length)

    def _require_recovery(self, loss: float, norm: float) -> None:
        most = self.spec.training.max_skipped_steps
        if self.recipe.skipped > most:
            before = f", after {most} skipped steps" if most else ""
            raise TrainingDiverged(
                f"step {self.step + 1}: the loss is {loss:.4g} and the gradient's norm {norm:.4g}{before};"
                " lower learning_rate or raise warmup_steps",
                pointer="/training/learning_rate",
            )

    @torch.no_grad()
    def evaluate(self, micro_batches: Iterable[Batch | None], *, one_token_context: bool = False) -> float:
        """Mean cross-entropy over all ranks' micro-batches, nats; equally many on every rank.

        ``one_token_context``: the same targets, but every token is a document of its own at position 0.
        """
        make = without_context if one_token_context else packed_rows
        totals = torch.zeros(2, dtype=torch.float64, device=self.mesh.device)
        for batch in micro_batches:
            inputs = make(self.spec.model, batch or self._padding(), self.mesh.device, self.model.dtype)
            with self._uncompiled() if one_token_context else nullcontext():
                ce = self.model(inputs).cross_entropy
            totals += torch.stack([ce.double(), (inputs.targets_BT != IGNORED).sum().double()])
        loss_sum, targets = self.mesh.sum(totals).tolist()
        return loss_sum / max(targets, 1.0)

    @torch.no_grad()
    def logits(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """[B, T, V] in fp32 for rows of one document each."""
        with self._uncompiled():
            return self.model(whole_rows(self.spec.model, tokens_BT, self.mesh.device, self.model.dtype), logits=True)

    def _uncompiled(self) -> AbstractContextManager[object]:
        """For what runs a few times in shapes of its own, such as texts that grow: compiling it would take longer."""
        return torch.compiler.set_stance("force_eager") if self.spec.training.compile else nullcontext()

    def inputs(self, batch: Batch | None) -> Input:
        """A micro-batch of the data room on the device; None gives one of padding only, which weighs nothing."""
        rows, training = batch or self._padding(), self.spec.training
        rate = self.recipe.dropout.rate
        return packed_rows(self.spec.model, rows, self.mesh.device, self.model.dtype, seed=training.seed, dropout=rate)

    def _padding(self) -> Batch:
        shape = (self.spec.training.micro_batch_size, self.spec.data_pipeline.row_length)
        documents = np.full(shape, -1, dtype=np.int32)
        return Batch(np.zeros(shape, dtype=np.uint32), documents, np.zeros(shape, dtype=np.int32))

    def state_dict(self) -> dict[str, Any]:
        """The live tensors (DTensors when sharded), by parameter name, and the cursor: a state for torch's distributed
        checkpoint to save, or to load into in place."""
        # A forward pass without a backward one leaves small models gathered: other parameters than the optimizer's.
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        moments = {
            name: {key: value for key, value in self.optimizer.state[p].items() if key != "step"}
            for name, p in self.model.named_parameters()
        }
        return {
            "model": self.model.state_dict(),
            "optimizer": moments,
            "cursor": self.step,
            "recipe": self.recipe.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the tensors of a ``state_dict()`` (same mesh, values in place or replaced) or of a ``full_state()``."""
        mine = self.state_dict()
        self._copy(mine["model"], state["model"])
        for name, moments in mine["optimizer"].items():
            self._copy(moments, state["optimizer"][name])
        self.recipe = RecipeState.of(self.spec, state["recipe"])
        self.step = int(state["cursor"])
        for moments in self.optimizer.state.values():
            moments["step"].fill_(self.recipe.updates)

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over whole weights, by parameter name; what ``weights`` does not have stays as it is."""
        self._copy({name: tensor for name, tensor in self.state_dict()["model"].items() if name in weights}, weights)

    def full_state(self) -> dict[str, Any]:
        """``state_dict()`` with every tensor whole and in host memory, on every rank: ``build`` takes it on any mesh."""
        state = self.state_dict()
        moments = {name: {key: _whole(value) for key, value in pair.items()} for name, pair in state["optimizer"].items()}
        return {**state, "model": {name: _whole(value) for name, value in state["model"].items()}, "optimizer": moments}

    def teardown(self) -> None:
        """Leave the group. The process can build again."""
        self.optimizer.state.clear()
        self.mesh.dissolve()

    @torch.no_grad()
    def _initialise(self) -> None:
        for name, tensor in self.model.state_dict().items():
            _fill(tensor, initial_value(self.spec.model, self.spec.training.seed, name, tensor.shape))

    @torch.no_grad()
    def _copy(self, targets: Mapping[str, torch.Tensor], sources: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in targets.items():
            _fill(tensor, sources[name])


def _keeps_gathered(model: Decoder) -> bool:
    return sum(p.numel() for p in model.parameters()) * model.dtype.itemsize <= KEEP_GATHERED_BYTES


def _shard(model: nn.Module, mesh: Mesh, dtype: torch.dtype) -> None:
    """``fully_shard`` each block, then the rest (embedding, norm, head); gradients are summed, not averaged, in fp32."""
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    assert isinstance(model, Decoder)
    reshard = not _keeps_gathered(model)
    for module in (*model.blocks, *model.predictors, model):
        fully_shard(
            module,
            mesh=mesh.workers,
            mp_policy=policy,
            reshard_after_forward=reshard,
            shard_placement_fn=partial(_placement, world_size=mesh.membership.world_size),
        )
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _placement(parameter: nn.Parameter, world_size: int) -> Shard:
    """The first dimension that divides evenly: eight experts over sixteen workers would leave eight of these with none."""
    even = (dim for dim, size in enumerate(parameter.shape) if size % world_size == 0)
    return Shard(next(even, 0))


def _fill(tensor: torch.Tensor, source: torch.Tensor) -> None:
    """Copy ``source`` (whole, or sharded as ``tensor`` is) into ``tensor``; each rank takes its own part of a whole one."""
    if isinstance(tensor, DTensor) and not isinstance(source, DTensor):
        source = distribute_tensor(source.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    if local(tensor).data_ptr() != local(source).data_ptr():
        local(tensor).copy_(local(source))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().to("cpu", copy=True)

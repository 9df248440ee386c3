"""One optimizer step over whatever ranks there are: build, step, hand the state over, tear down, build again.

Legend: R rows of a micro-batch, T positions, V vocabulary, L mixture-of-experts layers, E experts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from data.dataset import Batch
from data.errors import MantaError
from workers.mesh import Membership, Mesh
from workers.model.attention import document_borders
from workers.model.decoder import IGNORED, Decoder, Input
from workers.model.init import initial_value
from workers.optim import Course, local, local_gradients, make_optimizer, squared_norm
from workers.spec import TrainSpec

KEEP_GATHERED_BYTES = 2**30
"""Models smaller than this are gathered once a step, and stay so from its first forward pass to its last backward pass."""


class TrainingDiverged(MantaError):
    """The loss or the gradient is not a number any more. The step was not applied."""

    code: ClassVar[str] = "training_diverged"
    status: ClassVar[int] = 409


@dataclass(frozen=True)
class StepResult:
    """The same on every rank."""

    loss: float
    """Mean cross-entropy over the global batch's targets, nats."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    targets: int
    counts_LE: torch.Tensor
    """Valid tokens of the global batch that chose each expert, in host memory."""
    signal: int
    """The sum of what the ranks passed as ``signal``."""


class Engine:
    """A model, its optimizer and the mesh that they live on. Every method is called by all ranks together."""

    def __init__(self, spec: TrainSpec, mesh: Mesh, model: Decoder) -> None:
        self.spec, self.mesh, self.model = spec, mesh, model
        self.optimizer = make_optimizer(model, spec.training)
        self.course = Course(self.optimizer, spec.training, spec.total_steps)
        self.step = 0
        """Optimizer steps taken: the cursor of the whole run."""
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
        dtype = torch.bfloat16 if spec.training.precision == "bf16" else torch.float32
        with torch.device("meta"):
            model = Decoder(spec.model, vocab_size, dtype)
        if spec.training.compile:
            for block in model.blocks:
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
        expert counts, ``signal``) travels in one all-reduce. Raises ``TrainingDiverged`` before anything is applied.
        """
        training, device = self.spec.training, self.mesh.device
        # Any constant does here: the true weight, one over the number of targets, is known only after the all-reduce.
        nominal = training.global_batch_size * self.spec.data_pipeline.sequence_length
        totals = torch.zeros(2, dtype=torch.float64, device=device)
        counts_LE = torch.zeros(len(self.model.experts), self.spec.model.n_routed_experts, dtype=torch.float64, device=device)
        for i, batch in enumerate(micro_batches):
            if isinstance(self.model, FSDPModule):
                last = i == len(micro_batches) - 1
                self.model.set_requires_gradient_sync(last)
                self.model.set_reshard_after_backward(last or not self.keeps_gathered)
            inputs = self.inputs(batch)
            loss, counts = self.model(inputs)
            (loss / nominal).backward()
            totals += torch.stack([loss.detach().double(), (inputs.targets_BT != IGNORED).sum().double()])
            counts_LE += counts

        gradients = local_gradients(self.model.parameters())
        extra = torch.tensor([float(signal)], dtype=torch.float64, device=device)
        agreed = self.mesh.sum(torch.cat([totals, squared_norm(gradients)[None], extra, counts_LE.flatten()])).cpu()
        loss_sum, targets, square, signals = agreed[:4].tolist()
        weight = nominal / max(targets, 1.0)
        norm = math.sqrt(square) * weight if math.isfinite(square) else square
        if not (math.isfinite(norm) and math.isfinite(loss_sum)):
            self.optimizer.zero_grad()
            raise TrainingDiverged(
                f"step {self.step + 1}: the loss is {loss_sum / max(targets, 1.0):.4g} and the gradient's norm {norm:.4g};"
                " lower learning_rate or raise warmup_steps",
                pointer="/training/learning_rate",
            )
        for gradient in gradients:
            gradient.mul_(weight * min(1.0, training.clip_grad_norm / (norm + 1e-6)))
        rate = self.course.set(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        counts_LE = agreed[4:].view_as(counts_LE)
        for layer, counts in zip(self.model.experts, counts_LE, strict=True):
            layer.update_bias(counts, self.spec.model.router_bias_update_rate)
        self.step += 1
        return StepResult(loss_sum / max(targets, 1.0), norm, rate, int(targets), counts_LE.long(), int(signals))

    @torch.no_grad()
    def evaluate(self, micro_batches: Iterable[Batch | None], *, one_token_context: bool = False) -> float:
        """Mean cross-entropy over all ranks' micro-batches, nats; equally many on every rank.

        ``one_token_context``: the same targets, but every token is a document of its own at position 0.
        """
        totals = torch.zeros(2, dtype=torch.float64, device=self.mesh.device)
        for batch in micro_batches:
            inputs = self.inputs(batch)
            if one_token_context:
                alone = torch.arange(inputs.tokens_BT.numel()).view(inputs.tokens_BT.shape)
                positions_BT = torch.zeros_like(inputs.positions_BT)
                inputs = inputs._replace(
                    positions_BT=positions_BT, borders=document_borders(alone, self.mesh.device, self.model.dtype)
                )
            loss, _ = self.model(inputs)
            totals += torch.stack([loss.double(), (inputs.targets_BT != IGNORED).sum().double()])
        loss_sum, targets = self.mesh.sum(totals).tolist()
        return loss_sum / max(targets, 1.0)

    @torch.no_grad()
    def logits(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """[B, T, V] in fp32 for rows of one document each."""
        positions_BT = torch.arange(tokens_BT.shape[1]).expand(tokens_BT.shape)
        borders = document_borders(torch.zeros_like(tokens_BT), self.mesh.device, self.model.dtype)
        tokens_BT, positions_BT = tokens_BT.to(self.mesh.device), positions_BT.to(self.mesh.device)
        valid_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
        return self.model(Input(tokens_BT, positions_BT, borders, valid_BT, tokens_BT), logits=True)[0]

    def inputs(self, batch: Batch | None) -> Input:
        """A micro-batch of the data room on the device; None gives one of padding only, which weighs nothing."""
        shape = (self.spec.training.micro_batch_size, self.spec.data_pipeline.sequence_length)
        if batch is None:
            tokens, positions, documents = torch.zeros(shape).long(), torch.zeros(shape).long(), torch.full(shape, -1)
        else:
            tokens, positions = torch.from_numpy(batch.tokens).long(), torch.from_numpy(batch.positions).long()
            documents = torch.from_numpy(batch.document_ids).long()
        same = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
        targets = torch.full_like(tokens, IGNORED)
        targets[:, :-1] = torch.where(same, tokens[:, 1:], IGNORED)
        device = self.mesh.device
        borders = document_borders(documents, device, self.model.dtype)
        tokens, positions, valid, targets = (
            x.to(device, non_blocking=True) for x in (tokens, positions, documents >= 0, targets)
        )
        return Input(tokens, positions, borders, valid, targets)

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
        return {"model": self.model.state_dict(), "optimizer": moments, "cursor": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the tensors of a ``state_dict()`` (same mesh, values in place or replaced) or of a ``full_state()``."""
        mine = self.state_dict()
        self._copy(mine["model"], state["model"])
        for name, moments in mine["optimizer"].items():
            self._copy(moments, state["optimizer"][name])
        self._set_step(int(state["cursor"]))

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

    def _set_step(self, step: int) -> None:
        self.step = step
        for state in self.optimizer.state.values():
            state["step"].fill_(step)


def _keeps_gathered(model: Decoder) -> bool:
    return sum(p.numel() for p in model.parameters()) * model.dtype.itemsize <= KEEP_GATHERED_BYTES


def _shard(model: nn.Module, mesh: Mesh, dtype: torch.dtype) -> None:
    """``fully_shard`` each block, then the rest (embedding, norm, head); gradients are summed, not averaged, in fp32."""
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    assert isinstance(model, Decoder)
    reshard = not _keeps_gathered(model)
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh.workers, mp_policy=policy, reshard_after_forward=reshard)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _fill(tensor: torch.Tensor, source: torch.Tensor) -> None:
    """Copy ``source`` (whole, or sharded as ``tensor`` is) into ``tensor``; each rank takes its own part of a whole one."""
    if isinstance(tensor, DTensor) and not isinstance(source, DTensor):
        source = distribute_tensor(source.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    if local(tensor).data_ptr() != local(source).data_ptr():
        local(tensor).copy_(local(source))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().to("cpu", copy=True)

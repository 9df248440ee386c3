"""What one worker's tensors take at the peak of an optimizer step, in bytes: known before anything runs. Free of torch.

The step is walked through as the engine does it eagerly: up to the loss, back through every block, and the update. The figure
is of tensors: what a kernel needs for itself, and what an allocator holds beyond that, comes on top. With ``compile`` it is an
upper bound, for fused operators keep less.

Legend: N tokens of a micro-batch, D hidden size, V vocabulary, c bytes of a number in the compute type.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from workers.budget import choose
from workers.model.count import Parameters, logical_elements
from workers.model.footprint import FP32, INDEX, Mode, Setting, Stage, norm_stage, product, sight_bytes, stages
from workers.spec import TrainSpec

KEEP_GATHERED_BYTES = 2**30
"""As ``workers.engine``: smaller models stay gathered between forward and backward."""
LOSS_CHUNK, LOSS_CHUNK_ON_GPU = 512, 4096
"""As ``workers.model.loss``: tokens whose logits are held at once."""
UPDATE_CHUNK = 2**18
"""As ``workers.optim``: elements that a CPU updates at once where moments are rounded, with 6 results of 4 bytes each."""
ORTHOGONAL_BATCH = 2**26
"""As ``workers.muon``: elements that are orthogonalised together."""
MODES: tuple[Mode, ...] = ("none", "selective", "full")

Moment = Literal["loss", "backward", "update"]


class Memory(BaseModel):
    """Bytes on one worker, at the peak of a step. The parts are those of that moment."""

    model_config = ConfigDict(frozen=True)

    parameters: int
    """fp32."""
    gradients: int
    """fp32: of all parameters where micro-batches accumulate, else of those that the backward pass has come by."""
    optimizer: int
    gathered: int
    """Whole parameters, gathered from all workers for the computation, and whole gradients while they accumulate."""
    activations: int
    """All else: what a micro-batch keeps for its backward pass, its logits, copies of weights in the compute type."""
    total: int
    peak: Moment


class Block(NamedTuple):
    """One of the decoder's blocks, or what lies around one."""

    stages: list[Stage]
    kept: dict[Mode, int]


def memory(spec: TrainSpec, parameters: Parameters, micro_batches: int) -> Memory:
    """With ``micro_batches`` of each worker in a step."""
    shard = -(-parameters.total // spec.world_size)
    fixed = {
        "parameters": shard * FP32,
        "optimizer": -(-_moments(spec, parameters) // spec.world_size),
        "gathered": _gathered(spec, parameters, micro_batches),
    }
    before = shard * FP32 if spec.world_size > 1 or micro_batches > 1 else None
    moments = [
        *_micro_batch(spec, before, whole=micro_batches == 1),
        (_update_bytes(spec, parameters), shard * FP32, "update"),
    ]
    rest, gradients, peak = max(moments, key=lambda moment: moment[0] + moment[1])
    parts = {**fixed, "gradients": gradients, "activations": rest}
    return Memory(**parts, total=sum(parts.values()), peak=peak)


def activations(spec: TrainSpec) -> dict[Mode, int]:
    """What the blocks keep of one micro-batch for its backward pass, by mode of activation checkpointing."""
    blocks = _blocks(spec)
    return {mode: sum(block.kept[mode] for block in blocks) for mode in MODES}


def modes(spec: TrainSpec) -> list[Mode]:
    """Each block's, from the bottom. Raises RecomputeBudgetTooSmall where ``activation_bytes`` are too few."""
    training, blocks = spec.training, _blocks(spec)
    if training.activation_bytes is not None:
        return choose([block.kept for block in blocks], training.activation_bytes)
    return [training.activation_checkpointing] * len(blocks)


def compute_bytes(spec: TrainSpec) -> int:
    return FP32 if spec.training.precision == "fp32" else 2


def _setting(spec: TrainSpec) -> Setting:
    training, gpu, compute = spec.training, spec.gpu_config.gpus_per_node > 0, compute_bytes(spec)
    # Between several workers weights travel in the compute type.
    casts = compute < FP32 and spec.world_size == 1
    dropout = spec.model.dropout > 0 or training.adaptive_dropout is not None
    return Setting(training.micro_batch_size, spec.data_pipeline.row_length, compute, gpu, casts, dropout)


def _blocks(spec: TrainSpec) -> list[Block]:
    """From the bottom, those of multi-token prediction last."""
    model, at = spec.model, _setting(spec)

    @lru_cache
    def block(layer: int) -> Block:
        made = stages(model, layer, at)
        # A block's input, which its first norm may have copied, is kept where the block is computed again.
        x = at.tokens * model.hidden_size * at.compute
        kept: dict[Mode, int] = {"none": sum(stage.kept for stage in made), "full": x}
        kept["selective"] = x + sum(stage.results for stage in made)
        return Block(made, kept)

    layers = range(model.num_hidden_layers + model.num_nextn_predict_layers)
    kinds = [(model.heads(i), model.pattern(i), i < model.dense_layers, i < model.num_hidden_layers) for i in layers]
    return [block(kinds.index(kind)) for kind in kinds]


def _micro_batch(spec: TrainSpec, gradients: int | None, *, whole: bool) -> Iterator[tuple[int, int, Moment]]:
    """(bytes beside parameters, moments and gradients; gradients) at each moment that may be the peak of a micro-batch.

    ``gradients``: what those that were there before take, which these are added to; None: there were none. ``whole``: a block's
    are held until its last, alone or to be shared out.
    """
    model, at, each = spec.model, _setting(spec), modes(spec)
    hidden, head = at.tokens * model.hidden_size, spec.tokenizer.vocab_size * model.hidden_size * FP32
    losses = 1 + model.num_nextn_predict_layers
    blocks, around = _blocks(spec), Block([norm_stage(hidden, at)], {})
    row = [(block, mode) for block, mode in zip(blocks, each, strict=True)]
    predictors = row[model.num_hidden_layers :]
    row = [*row[: model.num_hidden_layers], (around, "none")]
    for predictor in predictors:
        row += [(_joined(spec, at), "none"), predictor, (around, "none")]
    kept = sum(_kept(block, mode) for block, mode in row)
    # Token ids, positions, targets; cosines and sines; the last block's output; of each loss its input's gradient, the head's.
    narrow = FP32 if spec.training.precision == "fp16" else at.compute
    live = at.tokens * 3 * INDEX + sight_bytes(model, at) + at.tokens * model.rotary_dim * at.compute + kept
    live += (hidden * at.compute if at.half else 0) + losses * (hidden * narrow + head)
    had = gradients or 0
    yield live + _logits(spec, at, narrow), had, "loss"
    for block, mode in reversed(row):
        if mode != "none":
            # What it keeps is its own again: the block's input, and results that need not be computed.
            live += sum(stage.kept for stage in block.stages) - block.kept[mode]
        new = 0
        for stage in reversed(block.stages):
            yield live + stage.work, had + new, "backward"
            live -= stage.kept
            new += stage.gradients if whole else 0
        had += new if gradients is None else 0
    # The embedding's gradient comes last.
    yield live + head + (hidden * FP32 if at.half else 0), had, "backward"


def _kept(block: Block, mode: Mode) -> int:
    return sum(stage.kept for stage in block.stages) if mode == "none" else block.kept[mode]


def _joined(spec: TrainSpec, at: Setting) -> Block:
    """How a module of multi-token prediction brings together what it reads."""
    hidden, size = at.tokens * spec.model.hidden_size, spec.model.hidden_size
    projection = product(2 * size, size, at.tokens, at)
    # The norms' outputs are copied side by side; the input of one, where that is kept as it is, is the last norm's too.
    norms, shared = norm_stage(2 * hidden, at), 0 if at.half and not at.gpu else hidden * at.compute
    return Block([norms._replace(kept=norms.kept - shared), projection], {})


def _logits(spec: TrainSpec, at: Setting, narrow: int) -> int:
    """While the loss of a chunk is computed: its logits, the same in fp32, their softmax; the head in the compute type."""
    vocabulary, chunk = spec.tokenizer.vocab_size, min(LOSS_CHUNK_ON_GPU if at.gpu else LOSS_CHUNK, at.tokens)
    head = vocabulary * spec.model.hidden_size
    logits, cast = chunk * vocabulary, head * at.compute if at.casts else 0
    if at.half and narrow == FP32:
        return cast + logits * FP32 + max(logits, head) * FP32
    return cast + logits * (narrow + (FP32 if at.half else 0) + FP32)


def _moments(spec: TrainSpec, parameters: Parameters) -> int:
    """Bytes of the optimizer's moving averages: two an element, or Muon's one."""
    one = logical_elements(spec.model) if spec.training.optimizer == "muon" else 0
    return (2 * parameters.total - one) * (2 if spec.training.moments_dtype == "bf16" else FP32)


def _update_bytes(spec: TrainSpec, parameters: Parameters) -> int:
    """What the optimizer itself holds."""
    training, model, gpu = spec.training, spec.model, spec.gpu_config.gpus_per_node > 0
    rounded = 0
    if training.moments_dtype == "bf16" and not gpu:
        rounded = 6 * FP32 * max(min(whole, max(UPDATE_CHUNK, row)) for whole, row in _largest(spec))
    if training.optimizer != "muon":
        return rounded
    batch = min(logical_elements(model), ORTHOGONAL_BATCH)
    part = 2 if gpu else FP32
    # All updates, and of the most numerous shape, a SwiGLU's gates and ups: a copy, a normalised one, the next, their products.
    width = model.moe_intermediate_size if model.dense_layers < model.num_hidden_layers else model.intermediate_size
    square = min(width, model.hidden_size) / max(width, model.hidden_size)
    return max(rounded, round(part * batch * (1 + (3 + square) * _gate_share(spec))))


def _largest(spec: TrainSpec) -> list[tuple[int, int]]:
    """Elements of the parameters that are the largest, and of one row of their first dimension."""
    model, d = spec.model, spec.model.hidden_size
    sizes = [(spec.tokenizer.vocab_size * d, d)]
    if model.dense_layers:
        sizes.append((2 * model.intermediate_size * d, 2 * d))
    if model.dense_layers < model.num_hidden_layers:
        expert = 2 * model.moe_intermediate_size * d
        sizes.append((model.n_routed_experts * expert, expert))
    return sizes


def _gate_share(spec: TrainSpec) -> float:
    """Of the elements that Muon updates, those in gates and ups."""
    model = spec.model
    moe = model.num_hidden_layers - model.dense_layers
    experts = moe * (model.n_routed_experts + model.n_shared_experts) * model.moe_intermediate_size
    widest = max(experts, model.dense_layers * model.intermediate_size)
    return 2 * widest * model.hidden_size / logical_elements(model)


def _gathered(spec: TrainSpec, parameters: Parameters, micro_batches: int) -> int:
    if spec.world_size == 1:
        return 0
    whole = parameters.total * compute_bytes(spec)
    outside = parameters.by_part["embedding"] + parameters.by_part["head"]
    layers = spec.model.num_hidden_layers + spec.model.num_nextn_predict_layers
    layer = (parameters.total - outside) // layers * compute_bytes(spec)
    if whole <= KEEP_GATHERED_BYTES:
        # Gradients are summed over workers after the last micro-batch; until then each holds all of its own.
        return whole + (parameters.total * FP32 if micro_batches > 1 else 0)
    # Larger models hold the layer in use and the next one; the root's embedding and head stay.
    return outside * compute_bytes(spec) + 2 * layer

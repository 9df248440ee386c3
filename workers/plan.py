"""What a training job would run, before anything runs: layout, parameters, steps, memory, operations, and what is wrong.

Free of torch and Ray: the service and the command line plan with it. Parameter counts and FLOPs are exact for
``workers.model``; activations are an estimate, everything else in memory follows from the layout.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from workers.model.spec import ModelSpec
from workers.spec import TrainSpec

KEEP_GATHERED_BYTES = 2**30
"""As ``workers.engine``: smaller models stay gathered between forward and backward."""
GROUPED_MM_ROW_BYTES = 16
"""What torch's grouped matrix product wants rows to be multiples of."""
MASTER_BYTES = 4
"""Parameters, gradients and each of AdamW's two moments are fp32."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Problem(_Part):
    """Why this version cannot run the job. ``pointer`` is a JSON pointer into the spec."""

    code: str
    pointer: str
    detail: str


class Parameters(_Part):
    """``active``: those that take part in one token's forward pass (an embedding row look-up counts as the whole matrix)."""

    total: int
    active: int
    by_part: dict[str, int]


class Memory(_Part):
    """Bytes on one worker, at the peak of a step."""

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    """Whole parameters, gathered from all workers for the computation, and whole gradients while they accumulate."""
    activations: int
    """An estimate: what one micro-batch keeps for its backward pass, and the logits."""
    total: int


class Plan(_Part):
    """``problems`` empty: the job can be submitted. A cluster too small for ``world_size`` only makes it wait."""

    world_size: int
    data_parallel: int
    micro_batches: int
    """In one optimizer step, over all workers."""
    micro_batches_per_worker: int
    gradient_accumulation: int
    tokens_per_step: int
    steps: int
    tokens: int
    vocab_size: int
    parameters: Parameters
    memory: Memory
    flops_per_token: float
    """Forward and backward, matrix products and causal attention."""
    flops: float
    """Of the whole run."""
    problems: list[Problem]
    notes: list[str]
    """What is legal and worth knowing."""


def plan(spec: TrainSpec) -> Plan:
    """The plan of ``spec``, with the vocabulary that it asks for."""
    training, length = spec.training, spec.data_pipeline.sequence_length
    vocabulary = spec.tokenizer.vocab_size
    world_size = spec.world_size
    micro_batches = training.global_batch_size // training.micro_batch_size
    per_worker = -(-micro_batches // world_size)
    parameters = count_parameters(spec.model, vocabulary)
    per_token = flops_per_token(spec.model, vocabulary, length)
    step_tokens = training.global_batch_size * length
    return Plan(
        world_size=world_size,
        data_parallel=world_size,
        micro_batches=micro_batches,
        micro_batches_per_worker=per_worker,
        gradient_accumulation=per_worker,
        tokens_per_step=step_tokens,
        steps=spec.total_steps,
        tokens=spec.total_steps * step_tokens,
        vocab_size=vocabulary,
        parameters=parameters,
        memory=_memory(spec, parameters, per_worker),
        flops_per_token=per_token,
        flops=per_token * step_tokens * spec.total_steps,
        problems=[*_unsupported(spec), *_misaligned(spec), *_batches(spec, micro_batches, per_worker)],
        notes=_notes(spec, micro_batches, per_worker),
    )


def describe(spec: TrainSpec) -> dict[str, Any]:
    """``plan`` as JSON."""
    return plan(spec).model_dump(mode="json")


def count_parameters(model: ModelSpec, vocab_size: int) -> Parameters:
    """Of ``workers.model.decoder.Decoder``. The routers' balancing biases are buffers and do not count."""
    d, head = model.hidden_size, model.resolved_head_dim
    layers, dense = model.num_hidden_layers, model.first_k_dense_replace
    moe = layers - dense
    expert = 3 * d * model.moe_intermediate_size
    heads_in, heads_out = model.num_attention_heads + 2 * model.num_key_value_heads, model.num_attention_heads
    parts = {
        "embedding": vocab_size * d,
        "head": 0 if model.tie_word_embeddings else vocab_size * d,
        "attention": layers * (heads_in + heads_out) * head * d,
        "norms": (2 * layers + 1) * d,
        "dense_feed_forward": dense * 3 * d * model.intermediate_size,
        "routed_experts": moe * model.n_routed_experts * expert,
        "shared_experts": moe * model.n_shared_experts * expert,
        "routers": moe * model.n_routed_experts * d,
    }
    idle = moe * (model.n_routed_experts - model.num_experts_per_tok) * expert
    total = sum(parts.values())
    return Parameters(total=total, active=total - idle, by_part=parts)


def flops_per_token(model: ModelSpec, vocab_size: int, sequence_length: int) -> float:
    """6 for every parameter in a matrix product that the token takes part in, and causal attention over half the row."""
    parts = count_parameters(model, vocab_size)
    look_up = 0 if model.tie_word_embeddings else parts.by_part["embedding"]
    matrix = parts.active - parts.by_part["norms"] - look_up
    attention = 6 * model.num_hidden_layers * model.num_attention_heads * model.resolved_head_dim * sequence_length
    return 6.0 * matrix + attention


def _memory(spec: TrainSpec, parameters: Parameters, per_worker: int) -> Memory:
    compute = _compute_bytes(spec)
    shard = -(-parameters.total // spec.world_size)
    gathered = 0
    if spec.world_size > 1:
        whole = parameters.total * compute
        layer = (
            parameters.total - parameters.by_part["embedding"] - parameters.by_part["head"]
        ) // spec.model.num_hidden_layers
        # Larger models hold the layer in use and the next one; the root's embedding and head stay.
        root = (parameters.by_part["embedding"] + parameters.by_part["head"]) * compute
        gathered = whole if whole <= KEEP_GATHERED_BYTES else root + 2 * layer * compute
        if per_worker > 1:
            gathered += parameters.total * MASTER_BYTES
    parts = {
        "parameters": shard * MASTER_BYTES,
        "gradients": shard * MASTER_BYTES,
        "optimizer": 2 * shard * MASTER_BYTES,
        "gathered": gathered,
        "activations": _activations(spec, compute),
    }
    return Memory(**parts, total=sum(parts.values()))


def _activations(spec: TrainSpec, compute: int) -> int:
    """Bytes that one micro-batch keeps: the inputs of every product and non-linearity, and logits with their gradient."""
    model = spec.model
    d, heads = model.hidden_size, model.num_attention_heads * model.resolved_head_dim
    keys = 2 * model.num_key_value_heads * model.resolved_head_dim
    attention = 4 * d + 2 * heads + keys
    expert = 2 * d + 3 * model.moe_intermediate_size
    shared = 3 * model.n_shared_experts * model.moe_intermediate_size
    moe = 2 * d + model.num_experts_per_tok * expert + shared + 2 * model.n_routed_experts
    dense = 2 * d + 3 * model.intermediate_size
    layers, dense_layers = model.num_hidden_layers, model.first_k_dense_replace
    per_token = (layers * attention + (layers - dense_layers) * moe + dense_layers * dense) * compute
    logits = spec.tokenizer.vocab_size * (compute + 2 * MASTER_BYTES)
    return spec.training.micro_batch_size * spec.data_pipeline.sequence_length * (per_token + logits)


def _unsupported(spec: TrainSpec) -> list[Problem]:
    strategy = spec.parallel_strategy
    names = ("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel")
    found = [
        Problem(
            code="not_supported_yet",
            pointer=f"/parallel_strategy/{name}",
            detail=f"{name} {degree}: this version trains with data parallelism only; leave it out, or set 1",
        )
        for name in names
        if (degree := getattr(strategy, name)) not in ("auto", 1)
    ]
    if strategy.sequence_parallel:
        detail = "sequence_parallel goes with tensor parallelism, which this version does not have; leave it out"
        found.append(Problem(code="not_supported_yet", pointer="/parallel_strategy/sequence_parallel", detail=detail))
    return found


def _misaligned(spec: TrainSpec) -> list[Problem]:
    if spec.model.first_k_dense_replace == spec.model.num_hidden_layers:
        return []
    multiple = GROUPED_MM_ROW_BYTES // _compute_bytes(spec)
    return [
        Problem(
            code="misaligned",
            pointer=f"/model/{name}",
            detail=f"{name} {size} is not a multiple of {multiple}, as the experts' products in {spec.training.precision} need",
        )
        for name in ("hidden_size", "moe_intermediate_size")
        if (size := getattr(spec.model, name)) % multiple
    ]


def _batches(spec: TrainSpec, micro_batches: int, per_worker: int) -> list[Problem]:
    stated = spec.parallel_strategy.gradient_accumulation
    found = []
    if micro_batches < spec.world_size:
        detail = (
            f"global_batch_size {spec.training.global_batch_size} is {micro_batches} micro-batches of"
            f" {spec.training.micro_batch_size}, too few for {spec.world_size} workers"
        )
        found.append(Problem(code="batch_too_small", pointer="/training/global_batch_size", detail=detail))
    elif stated not in ("auto", per_worker):
        detail = (
            f"gradient_accumulation {stated}: {micro_batches} micro-batches over {spec.world_size} workers make {per_worker};"
            " leave it out, or change global_batch_size"
        )
        found.append(Problem(code="batch_mismatch", pointer="/parallel_strategy/gradient_accumulation", detail=detail))
    return found


def _notes(spec: TrainSpec, micro_batches: int, per_worker: int) -> list[str]:
    notes = []
    if idle := per_worker * spec.world_size - micro_batches:
        notes.append(f"{idle} of {per_worker * spec.world_size} micro-batch places of a step are empty: workers wait there")
    if spec.tokenizer.path is not None:
        notes.append(f"counted with vocab_size {spec.tokenizer.vocab_size}; {spec.tokenizer.path} has the last word")
    return notes


def _compute_bytes(spec: TrainSpec) -> int:
    return 2 if spec.training.precision == "bf16" else 4

"""What a training job would run, before anything runs: layout, parameters, steps, memory, operations, and what is wrong.

Free of torch and Ray: the service and the command line plan with it. Parameter counts and FLOPs are exact for
``workers.model``; ``workers.memory`` says what its figures stand for.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from workers.budget import RecomputeBudgetTooSmall
from workers.fit import misaligned, needed, too_large
from workers.memory import Memory, activations
from workers.model.count import Parameters, count_parameters, flops_per_token
from workers.model.footprint import Mode
from workers.model.presets import PRESETS
from workers.spec import TrainSpec


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Problem(_Part):
    """Why this version cannot run the job. ``pointer`` is a JSON pointer into the spec."""

    code: str
    pointer: str
    detail: str


class Published(_Part):
    """The model that a preset stands for, and where it is described."""

    name: str
    source: str


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
    preset: Published | None
    parameters: Parameters
    memory: Memory
    activations: dict[Mode, int]
    """What the blocks keep of one micro-batch for its backward pass, by ``activation_checkpointing``."""
    flops_per_token: float
    """Forward and backward, matrix products and causal attention, in rows of the final length."""
    flops: float
    """Of the whole run."""
    problems: list[Problem]
    notes: list[str]
    """What is legal and worth knowing."""


def plan(spec: TrainSpec) -> Plan:
    """The plan of ``spec``, with the vocabulary that it asks for."""
    training, curriculum, vocabulary = spec.training, spec.curriculum, spec.tokenizer.vocab_size
    world_size, steps = spec.world_size, spec.total_steps
    micro_batches = training.global_batch_size // training.micro_batch_size
    per_worker = -(-micro_batches // world_size)
    by_length = zip(curriculum.row_lengths, curriculum.segment_tokens(), strict=True)
    budget: list[Problem] = []
    try:
        memory = needed(spec)
    except RecomputeBudgetTooSmall as error:
        budget = [Problem(code=error.code, pointer=error.pointer or "", detail=str(error))]
        memory = needed(_fully_recomputed(spec))
    return Plan(
        world_size=world_size,
        data_parallel=world_size,
        micro_batches=micro_batches,
        micro_batches_per_worker=per_worker,
        gradient_accumulation=per_worker,
        tokens_per_step=micro_batches * curriculum.micro_batch_tokens,
        steps=steps,
        tokens=curriculum.tokens_before(steps),
        vocab_size=vocabulary,
        preset=None if (name := spec.model.preset) is None else Published(name=name, source=PRESETS[name].source),
        parameters=count_parameters(spec.model, vocabulary),
        memory=memory,
        activations=activations(spec),
        flops_per_token=flops_per_token(spec.model, vocabulary, spec.data_pipeline.row_length),
        flops=sum(tokens * flops_per_token(spec.model, vocabulary, length) for length, tokens in by_length),
        problems=[
            *_unsupported(spec),
            *_misaligned(spec),
            *_batches(spec, micro_batches, per_worker),
            *budget,
            *([] if budget else _too_large(spec, memory)),
        ],
        notes=_notes(spec, micro_batches, per_worker),
    )


def describe(spec: TrainSpec) -> dict[str, Any]:
    """``plan`` as JSON."""
    return plan(spec).model_dump(mode="json")


def _fully_recomputed(spec: TrainSpec) -> TrainSpec:
    changes = {"activation_bytes": None, "activation_checkpointing": "full"}
    return spec.model_copy(update={"training": spec.training.model_copy(update=changes)})


def _too_large(spec: TrainSpec, memory: Memory) -> list[Problem]:
    found = too_large(spec, memory.total)
    return [] if found is None else [Problem(code="too_large", pointer=found[0], detail=found[1])]


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
    return [
        Problem(
            code="misaligned",
            pointer=f"/model/{name}",
            detail=f"{name} {size} is not a multiple of {multiple}, as the experts' products in {spec.training.precision} need",
        )
        for name, size, multiple in misaligned(spec)
    ]


def _batches(spec: TrainSpec, micro_batches: int, per_worker: int) -> list[Problem]:
    stated = spec.parallel_strategy.gradient_accumulation
    found = []
    if micro_batches < spec.world_size:
        detail = (
            f"global_batch_size {spec.training.global_batch_size} is {micro_batches} micro-batches of"
            f" {spec.training.micro_batch_size}, too few for {spec.world_size} workers; raise it to"
            f" {spec.world_size * spec.training.micro_batch_size}, or lower micro_batch_size"
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
    vocabulary, name = spec.tokenizer.vocab_size, spec.model.preset
    if name is not None and spec.tokenizer.path is None and vocabulary != (published := PRESETS[name].vocab_size):
        notes.append(f"tokenizer.vocab_size is {vocabulary}; the published model of preset {name} has {published}")
    if spec.tokenizer.path is not None:
        notes.append(f"counted with vocab_size {spec.tokenizer.vocab_size}; {spec.tokenizer.path} has the last word")
    if (warmup := spec.training.resolved_warmup_steps(spec.total_steps)) >= spec.total_steps:
        notes.append(f"the warm-up takes {warmup} steps and the run {spec.total_steps}: it ends before the full learning rate")
    return notes

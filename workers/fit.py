"""Whether a job's tensors fit the memory that it states, and if not, what would make them fit. Free of torch."""

from itertools import product
from math import log2
from typing import Any, NamedTuple

from workers.budget import RecomputeBudgetTooSmall
from workers.memory import Memory, compute_bytes, memory
from workers.model.count import count_parameters
from workers.model.presets import PRESETS
from workers.model.spec import ModelSpec
from workers.sizes import in_words, parse_bytes
from workers.spec import TrainSpec

WAYS = 3
"""How many are named."""
GROUPED_MM_ROW_BYTES = 16
"""What torch's grouped matrix product wants rows to be multiples of."""
SIZES = 8
"""Smaller micro-batches that are tried."""
DOUBLINGS = 12
"""How often the number of workers is doubled, itself among them, before a way out is sought in smaller models."""


class Limit(NamedTuple):
    """What one worker may hold, and the field that says so."""

    bytes: int
    pointer: str


class Way(NamedTuple):
    workers: int
    changes: dict[str, Any]
    """Of ``training``, by field."""
    total: int


def limit(spec: TrainSpec) -> Limit | None:
    """A GPU's memory, or a CPU worker's part of its machine's; None where none is stated."""
    gpus = spec.gpu_config
    if gpus.gpus_per_node:
        size = None if gpus.gpu_memory is None else parse_bytes(gpus.gpu_memory)
        return None if size is None else Limit(size, "/gpu_config/gpu_memory")
    size = None if gpus.cpu_memory is None else parse_bytes(gpus.cpu_memory)
    return None if size is None else Limit(size // _workers_a_machine(spec), "/gpu_config/cpu_memory")


def _workers_a_machine(spec: TrainSpec) -> int:
    return spec.gpu_config.gpus_per_node or -(-spec.world_size // spec.gpu_config.nodes)


def needed(spec: TrainSpec) -> Memory:
    """At the peak of a step, on one worker."""
    micro_batches = spec.training.global_batch_size // spec.training.micro_batch_size
    parameters = count_parameters(spec.model, spec.tokenizer.vocab_size)
    return memory(spec, parameters, max(-(-micro_batches // spec.world_size), 1))


def misaligned(spec: TrainSpec) -> list[tuple[str, int, int]]:
    """(field of ``model``, its size, what that should be a multiple of) where experts' products cannot take it."""
    model = spec.model
    if not model.n_routed_experts or (model.dense_layers == model.num_hidden_layers and not model.num_nextn_predict_layers):
        return []
    multiple = GROUPED_MM_ROW_BYTES // compute_bytes(spec)
    sizes = [(name, getattr(model, name)) for name in ("hidden_size", "moe_intermediate_size")]
    return [(name, size, multiple) for name, size in sizes if size % multiple]


def too_large(spec: TrainSpec, total: int) -> tuple[str, str] | None:
    """(pointer, detail) where ``total`` bytes on a worker are more than stated: what is missing, and ways out, computed."""
    allowed = limit(spec)
    if allowed is None or total <= allowed.bytes:
        return None
    ways = ways_out(spec, allowed.bytes)
    texts = [_words(spec, way) for way in ways]
    texts = (texts if len(texts) >= WAYS else texts + _smaller_presets(spec, allowed.bytes))[:WAYS]
    fits = f"; these would fit: {'; '.join(texts)}" if texts else "; choose a smaller model"
    if not ways:
        fits = f"; {_at_the_most(spec)}{fits}"
    missing = f"{in_words(total - allowed.bytes)} more than the {in_words(allowed.bytes)} that are there"
    return allowed.pointer, f"a worker needs {in_words(total)}, {missing}{fits}"


def ways_out(spec: TrainSpec, allowed: int) -> list[Way]:
    """Sets of changes of which none can be left out, with as few more workers as they need; those that change least first."""
    found: list[Way] = []
    for doubling in range(DOUBLINGS):
        for way in _smallest_changes(spec, spec.world_size * 2**doubling, allowed):
            if not any(other.changes.keys() <= way.changes.keys() for other in found):
                found.append(way)
        if len(found) >= WAYS or any(not way.changes for way in found):
            break
    return sorted(found, key=lambda way: (len(way.changes) + log2(way.workers / spec.world_size), way.total))


def _at_the_most(spec: TrainSpec) -> str:
    """What the strongest settings come to: what is left is weights that each worker gathers whole."""
    strongest = {name: values[-1] for name, values in _options(spec).items()}
    workers = spec.world_size * 2**DOUBLINGS
    total = needed(_changed(spec, workers, strongest)).total
    settings = ", ".join(f"{name} {value}" for name, value in strongest.items())
    return f"even {workers} workers{' with ' if settings else ''}{settings} need {in_words(total)} each"


def _smallest_changes(spec: TrainSpec, workers: int, allowed: int) -> list[Way]:
    """Sets that fit this many workers, the fewest changes first, then those that save most."""
    options = _options(spec)
    # None of them fits if the strongest together do not; fewer rows may mean gradients that accumulate, and more memory.
    strongest = {name: values[-1] for name, values in options.items()}
    as_many_rows = {name: value for name, value in strongest.items() if name != "micro_batch_size"}
    if all(_fitting(spec, workers, changes, allowed) is None for changes in (strongest, as_many_rows)):
        return []
    found: dict[frozenset[str], Way] = {}
    for values in product(*((None, *values) for values in options.values())):
        changes = {name: value for name, value in zip(options, values, strict=True) if value is not None}
        names = frozenset(changes)
        # The mildest value of each field comes first.
        if names not in found and (total := _fitting(spec, workers, changes, allowed)) is not None:
            found[names] = Way(workers, changes, total)
    minimal = [way for names, way in found.items() if not any(other < names for other in found)]
    return sorted(minimal, key=lambda way: (len(way.changes), way.total))


def _options(spec: TrainSpec) -> dict[str, list[Any]]:
    """What could be set otherwise in ``training``, the mildest value first."""
    training = spec.training
    options: dict[str, list[Any]] = {}
    if training.activation_bytes is None and training.activation_checkpointing != "full":
        options["activation_checkpointing"] = ["selective", "full"][training.activation_checkpointing == "selective" :]
    if smaller := _divisors_below(training.micro_batch_size):
        options["micro_batch_size"] = smaller
    if training.moments_dtype == "fp32":
        options["moments_dtype"] = ["bf16"]
    if training.precision == "fp32" and not misaligned(_changed(spec, spec.world_size, {"precision": "bf16"})):
        options["precision"] = ["bf16"]
    return options


def _divisors_below(number: int) -> list[int]:
    """From the largest down to 1; of many only some, evenly spread."""
    parts = [part for part in range(number // 2, 0, -1) if number % part == 0]
    return [parts[i] for i in sorted({round(at * (len(parts) - 1) / (SIZES - 1)) for at in range(SIZES)})] if parts else []


def _fitting(spec: TrainSpec, workers: int, changes: dict[str, Any], allowed: int) -> int | None:
    """The bytes on a worker, if they fit."""
    return _if_at_most(_changed(spec, workers, changes), allowed)


def _if_at_most(spec: TrainSpec, allowed: int) -> int | None:
    try:
        total = needed(spec).total
    except RecomputeBudgetTooSmall:
        return None
    return total if total <= allowed else None


def _changed(spec: TrainSpec, workers: int, changes: dict[str, Any]) -> TrainSpec:
    """A figure's spec, which may have more workers than micro-batches."""
    strategy = spec.parallel_strategy.model_copy(update={"data_parallel": workers})
    training = spec.training.model_copy(update=changes)
    return spec.model_copy(update={"parallel_strategy": strategy, "training": training})


def _words(spec: TrainSpec, way: Way) -> str:
    parts = [f"{name} {value}" for name, value in way.changes.items()]
    if way.workers > spec.world_size:
        least = way.workers * way.changes.get("micro_batch_size", spec.training.micro_batch_size)
        batch = f", global_batch_size {least} or more," if spec.training.global_batch_size < least else ""
        parts.insert(0, f"{way.workers} workers on {-(-way.workers // _workers_a_machine(spec))} machines{batch}")
    if way.workers > spec.world_size and way.changes:
        parts = [f"{parts[0]} with {parts[1]}", *parts[2:]]
    return f"{' and '.join(parts)} ({in_words(way.total)})"


def _smaller_presets(spec: TrainSpec, allowed: int) -> list[str]:
    """Those that fit, and read rows as long, the largest first: as the job stands, or with the strongest settings."""
    now = count_parameters(spec.model, spec.tokenizer.vocab_size).total
    names = sorted((name for name in PRESETS if PRESETS[name].total < now), key=lambda name: -PRESETS[name].total)
    models = ((name, ModelSpec.model_validate({"preset": name})) for name in names)
    long = ((name, model) for name, model in models if model.max_position_embeddings >= spec.data_pipeline.row_length)
    found = []
    for name, model in long:
        smaller = spec.model_copy(update={"model": model})
        for changes in ({}, {field: values[-1] for field, values in _options(smaller).items()}):
            if (total := _fitting(smaller, spec.world_size, changes, allowed)) is not None:
                settings = [f"{field} {value}" for field, value in changes.items()]
                found.append(f"model.preset {name}{' with ' if settings else ''}{', '.join(settings)} ({in_words(total)})")
                break
    return found

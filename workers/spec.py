"""What one training job is. Pydantic and nothing heavy: the API process and the CLI import this without torch.

Names follow Hugging Face's configs for the model (DeepSeek-V3's where it has one of its own) and torchtitan's for parallelism.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from data.curriculum import BatchSizes, Curriculum, steps_for
from data.spec import DataSpec, TokenizerSpec
from data.spec_base import Misfit, Seed, Spec
from workers.model.spec import ModelSpec
from workers.sizes import parse_bytes

Auto = Literal["auto"]
Degree = Annotated[int, Field(ge=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class GpuConfig(Spec):
    """The machines that a job asks for. ``gpus_per_node: 0`` trains on CPU workers."""

    nodes: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(default=0, ge=0)
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores, and torch threads, that one worker takes."""
    interconnect: str | None = None
    cpu_memory: str | float | None = None
    """Of each machine, as ``2TB/node``; a number alone counts GiB."""
    gpu_memory: str | float | None = None
    """Of each device, as ``80GB/H100`` (GB counts GiB). Where it is stated, ``manta plan`` says what would not fit."""

    @field_validator("cpu_memory", "gpu_memory")
    @classmethod
    def _is_a_size(cls, given: str | float | None) -> str | float | None:
        if given is not None and not parse_bytes(given):
            raise ValueError(f"{given!r} is no size of memory; write one like 80GB")
        return given


class ParallelSpec(Spec):
    """Degrees of the mesh. ``auto`` data parallelism takes what the other degrees leave of the workers."""

    data_parallel: Degree | Auto = "auto"
    tensor_parallel: Degree | Auto = "auto"
    pipeline_parallel: Degree | Auto = "auto"
    expert_parallel: Degree | Auto = "auto"
    context_parallel: Degree | Auto = "auto"
    gradient_accumulation: Degree | Auto = "auto"
    """Micro-batches a rank runs for one optimizer step; ``auto`` follows from the global batch."""
    sequence_parallel: bool = False


class BatchWarmup(Spec):
    """The global batch grows to ``global_batch_size`` in equal increments; every step has a whole number of micro-batches."""

    start: int = Field(ge=1)
    """Rows in the first optimizer step, counted as ``global_batch_size`` is."""
    fraction: float = Field(gt=0, le=1)
    """The warm-up as a share of all steps."""


class AdaptiveDropout(Spec):
    """Dropout that follows the held-out loss: up a ``step`` after an evaluation worse than the best one, down after a better
    one. Starts at ``low``."""

    low: float = Field(default=0.1, ge=0, lt=1)
    high: float = Field(default=0.3, ge=0, lt=1)
    step: float = Field(default=0.05, gt=0, lt=1)

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if self.low > self.high:
            raise Misfit(f"low {self.low} is more than high {self.high}", "low", "high")
        return self


class TrainingSpec(Spec):
    """The recipe."""

    tokens: int | None = Field(default=None, ge=1)
    """Train on this many tokens (rounded up to whole steps). Give this or ``steps``."""
    steps: int | None = Field(default=None, ge=1)
    global_batch_size: int = Field(default=32, ge=1)
    """Rows of ``sequence_length`` in one optimizer step, whatever the number of workers. Where a curriculum has shorter rows, a
    step has as many more of them; so has a micro-batch."""
    batch_warmup: BatchWarmup | None = None
    micro_batch_size: int = Field(default=8, ge=1)
    """Rows in one forward pass of one worker; the unit that the mesh deals out."""
    learning_rate: float = Field(default=4e-3, gt=0)
    learning_rate_schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """What follows the linear warm-up: ``wsd`` stays up and falls linearly over the last ``decay_fraction`` of all steps."""
    min_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    """The floor of the decay, as a share of ``learning_rate``."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Give this or ``warmup_fraction`` (default 10)."""
    warmup_fraction: float | None = Field(default=None, ge=0, le=1)
    """The warm-up as a share of all steps."""
    decay_fraction: float = Field(default=0.1, gt=0, le=1)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    final_betas: tuple[Beta, Beta] | None = None
    """Adam's betas move to these on a straight line over the whole run; None keeps ``betas``."""
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    optimizer: Literal["adamw", "muon"] = "adamw"
    """``muon``: orthogonalised momentum for the matrices inside the blocks, AdamW for the rest, at one learning rate."""
    muon_momentum: Beta = 0.95
    moments_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the optimizer's moving averages; bf16 is rounded stochastically, so that small changes still count."""
    clip_grad_norm: float = Field(default=1.0, gt=0)
    max_skipped_steps: int = Field(default=10, ge=0)
    """A step whose loss or gradient is no number (fp16: one that overflows, too) changes nothing; after more than this many in
    a row the run fails."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over the vocabulary (arXiv 1512.00567). The reported loss is the plain one."""
    focal_gamma: float = Field(default=0.0, ge=0)
    """Weighs each target by ``(1 - p) ** gamma`` (arXiv 1708.02002). The reported loss is the plain one."""
    adaptive_dropout: AdaptiveDropout | None = None
    """In place of ``model.dropout``; needs ``eval_interval``."""
    precision: Literal["bf16", "fp16", "fp32"] = "fp32"
    """Compute type; master weights are always fp32. fp16 scales the loss dynamically."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again: nothing; all but matrix products and attention; all but each block's input."""
    activation_bytes: int | None = Field(default=None, ge=1)
    """Bytes of activations that one micro-batch may keep: blocks are computed again as far as that asks, in place of
    ``activation_checkpointing``."""
    compile: bool = False
    """Compile the blocks and the loss with torch.compile."""
    seed: Seed = 0
    eval_interval: int | None = Field(default=None, ge=1)
    """Steps between held-out evaluations; None evaluates at the end only."""
    eval_rows: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.global_batch_size % self.micro_batch_size:
            raise Misfit(
                f"global_batch_size {self.global_batch_size} is not divisible by micro_batch_size {self.micro_batch_size}",
                *("global_batch_size", "micro_batch_size"),
            )
        if (warmup := self.batch_warmup) is not None:
            if warmup.start % self.micro_batch_size:
                raise Misfit(
                    f"batch_warmup.start {warmup.start} is not divisible by micro_batch_size {self.micro_batch_size}",
                    *("batch_warmup.start", "micro_batch_size"),
                )
            if warmup.start > self.global_batch_size:
                raise Misfit(
                    f"batch_warmup.start {warmup.start} is more than global_batch_size {self.global_batch_size}",
                    *("batch_warmup.start", "global_batch_size"),
                )
        if self.tokens is not None and self.steps is not None:
            raise Misfit("tokens and steps are both given; give one", "tokens", "steps")
        if self.warmup_steps is not None and self.warmup_fraction is not None:
            raise Misfit("warmup_steps and warmup_fraction are both given; give one", "warmup_steps", "warmup_fraction")
        if self.activation_bytes is not None and self.activation_checkpointing != "none":
            fields = ("activation_bytes", "activation_checkpointing")
            raise Misfit("activation_bytes and activation_checkpointing are both given; give one", *fields)
        if self.adaptive_dropout is not None and self.eval_interval is None:
            raise Misfit("adaptive_dropout follows the held-out loss; set eval_interval", "adaptive_dropout")
        return self

    def resolved_warmup_steps(self, total_steps: int) -> int:
        """Optimizer steps of the linear warm-up."""
        if self.warmup_fraction is not None:
            return round(self.warmup_fraction * total_steps)
        return 10 if self.warmup_steps is None else self.warmup_steps

    def total_steps(self, sequence_length: int) -> int:
        """Optimizer steps of the whole run (default 100)."""
        if self.tokens is not None:
            return steps_for(-(-self.tokens // (self.micro_batch_size * sequence_length)), *self._batch_course)
        return self.steps or 100

    def batch_sizes(self, total_steps: int) -> BatchSizes:
        """Micro-batches in each optimizer step."""
        return BatchSizes.of_run(total_steps, *self._batch_course)

    @property
    def _batch_course(self) -> tuple[int, int, float]:
        """Micro-batches at the end and at the beginning of the batch warm-up, and its share of all steps."""
        full = self.global_batch_size // self.micro_batch_size
        if self.batch_warmup is None:
            return full, full, 0.0
        return full, self.batch_warmup.start // self.micro_batch_size, self.batch_warmup.fraction


class CheckpointSpec(Spec):
    interval: int = Field(default=20, ge=1)
    """Optimizer steps between checkpoints. The last step is always kept."""
    keep_last: int = Field(default=2, ge=1)
    asynchronous: bool = True
    """Write in the background; the step waits only for the copy in host memory."""


class ElasticSpec(Spec):
    max_worker_restarts: int = Field(default=3, ge=0)
    """Deaths of workers that one attempt survives before it fails."""
    max_attempts: int = Field(default=3, ge=1)
    """Attempts (driver or cluster lost) that the supervisor starts before the job fails."""


class MonitoringSpec(Spec):
    log_interval: int = Field(default=1, ge=1)
    """Optimizer steps between metric reports."""
    timing_interval: int | None = Field(default=50, ge=1)
    """Optimizer steps between those that are timed by part (attention, experts, ...); None times none. Where ``compile`` is on,
    the blocks of a timed step run uncompiled, and it takes longer."""
    peak_tflops: float | Auto = "auto"
    """Peak of one device, for MFU; ``auto`` knows common GPUs and measures a CPU's matrix rate at start."""


class TrainSpec(Spec):
    """One training job, whole. Every default trains."""

    gpu_config: GpuConfig = GpuConfig()
    data_pipeline: DataSpec = DataSpec()
    tokenizer: TokenizerSpec = TokenizerSpec()
    model: ModelSpec = ModelSpec()
    init_from: str | None = Field(default=None, min_length=1)
    """A directory in Hugging Face's format (config.json, safetensors) whose weights the run begins with; ``model`` must be that
    very model, and ``tokenizer.path`` the tokenizer that it was made with. A run that has a checkpoint goes on from there."""
    parallel_strategy: ParallelSpec = ParallelSpec()
    training: TrainingSpec = TrainingSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    elastic: ElasticSpec = ElasticSpec()
    monitoring: MonitoringSpec = MonitoringSpec()

    @model_validator(mode="before")
    @classmethod
    def _aligned_to_blocks(cls, given: Any) -> Any:
        """Hierarchical attention reads documents from block borders on: unless told otherwise, they are packed so."""
        if not isinstance(given, dict) or not isinstance(model := given.get("model"), dict):
            return given
        data = given.get("data_pipeline", {})
        if model.get("attention_pattern") != "hierarchical" or not isinstance(data, dict) or "document_alignment" in data:
            return given
        block = model.get("hierarchical_block", ModelSpec.model_fields["hierarchical_block"].default)
        if not isinstance(block, int) or block < 1:
            return given  # the model's own error says so
        segments = data.get("curriculum") or [data]
        lengths = [part.get("sequence_length", DataSpec.model_fields["sequence_length"].default) for part in segments]
        if odd := [length for length in lengths if isinstance(length, int) and length % block]:
            raise Misfit(
                f"model.hierarchical_block {block} does not divide rows of {odd[0]} tokens; choose a block that divides"
                " data_pipeline.sequence_length, and every length of a curriculum",
                *("model.hierarchical_block", "data_pipeline.curriculum", "data_pipeline.sequence_length"),
            )
        return {**given, "data_pipeline": {**data, "document_alignment": block}}

    @model_validator(mode="after")
    def _one_dropout(self) -> Self:
        if self.model.dropout and self.training.adaptive_dropout is not None:
            raise Misfit(
                f"model.dropout {self.model.dropout:g} and training.adaptive_dropout are both given; give one",
                *("model.dropout", "training.adaptive_dropout"),
            )
        return self

    @model_validator(mode="after")
    def _rows_fit_the_model(self) -> Self:
        data, model = self.data_pipeline, self.model
        lengths = [segment.sequence_length * data.chain_segments for segment in data.segments]
        if data.row_length > model.max_position_embeddings:
            most = max(model.max_position_embeddings // data.chain_segments, 1)
            raise Misfit(
                f"data_pipeline: rows of {data.row_length} tokens are longer than model.max_position_embeddings"
                f" {model.max_position_embeddings}; lower sequence_length to {most}, or raise the model's",
                *("data_pipeline.sequence_length", "data_pipeline.chain_segments", "model.max_position_embeddings"),
            )
        if model.attention_pattern == "hierarchical" and data.document_alignment % model.hierarchical_block:
            raise Misfit(
                f"data_pipeline.document_alignment {data.document_alignment} is not a multiple of model.hierarchical_block"
                f" {model.hierarchical_block}; leave it out",
                *("data_pipeline.document_alignment", "model.hierarchical_block"),
            )
        if (segment := model.segment_length) is not None and any(length % segment for length in lengths):
            raise Misfit(
                f"model.segment_length {segment} does not divide rows of {' and '.join(map(str, lengths))} tokens; set it to"
                f" data_pipeline.sequence_length, and data_pipeline.chain_segments to the segments of a row",
                *("model.segment_length", "data_pipeline.sequence_length"),
            )
        return self

    @property
    def world_size(self) -> int:
        """Workers that the job asks for: stated data parallelism times the other degrees, else every device of the machines."""
        p = self.parallel_strategy
        model_degrees = 1
        for degree in (p.tensor_parallel, p.pipeline_parallel, p.context_parallel):
            model_degrees *= 1 if degree == "auto" else degree
        if p.data_parallel != "auto":
            return p.data_parallel * model_degrees
        return max(self.gpu_config.nodes * max(self.gpu_config.gpus_per_node, 1), model_degrees)

    @property
    def total_steps(self) -> int:
        return self.training.total_steps(self.data_pipeline.row_length)

    @property
    def curriculum(self) -> Curriculum:
        """The length of rows and the number of micro-batches of every optimizer step."""
        data, training = self.data_pipeline, self.training
        lengths = [segment.sequence_length * data.chain_segments for segment in data.segments]
        fractions = [segment.fraction for segment in data.segments]
        steps = self.total_steps
        return Curriculum(lengths, fractions, training.micro_batch_size, training.batch_sizes(steps), steps)

"""What one training job is. Pydantic and nothing heavy: the API process and the CLI import this without torch.

Names follow Hugging Face's configs for the model (DeepSeek-V3's where it has one of its own) and torchtitan's for parallelism.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data.curriculum import BatchSizes, Curriculum, steps_for
from data.spec import DataSpec, Seed, Spec, TokenizerSpec

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
    cpu_memory: str | None = None
    gpu_memory: str | None = None


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


class ModelSpec(Spec):
    """A DeepSeek-style decoder: grouped-query attention, mixture-of-experts feed-forward."""

    hidden_size: int = Field(default=192, ge=8)
    num_hidden_layers: int = Field(default=4, ge=1)
    num_attention_heads: int = Field(default=6, ge=1)
    num_key_value_heads: int = Field(default=2, ge=1)
    head_dim: int | None = Field(default=None, ge=2)
    """None: ``hidden_size / num_attention_heads``."""
    moe_intermediate_size: int = Field(default=192, ge=8)
    n_routed_experts: int = Field(default=8, ge=1)
    num_experts_per_tok: int = Field(default=2, ge=1)
    n_shared_experts: int = Field(default=1, ge=0)
    first_k_dense_replace: int = Field(default=0, ge=0)
    """The first k layers have a dense SwiGLU of ``intermediate_size`` in place of experts."""
    intermediate_size: int = Field(default=512, ge=8)
    routed_scaling_factor: float = Field(default=1.0, gt=0)
    router_bias_update_rate: float = Field(default=0.004, ge=0)
    """Step of the auxiliary-loss-free balancing bias (arXiv 2408.15664)."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    initializer_range: float = Field(default=0.02, gt=0)
    tie_word_embeddings: bool = False

    @property
    def resolved_head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads};"
                " choose another, or set head_dim"
            )
        if self.resolved_head_dim % 2:
            raise ValueError(f"head_dim {self.resolved_head_dim} is odd; rotary embedding needs pairs")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not divisible by"
                f" num_key_value_heads {self.num_key_value_heads}"
            )
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} is more than n_routed_experts {self.n_routed_experts}"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(
                f"first_k_dense_replace {self.first_k_dense_replace} is more than num_hidden_layers {self.num_hidden_layers}"
            )
        return self


class BatchWarmup(Spec):
    """The global batch grows to ``global_batch_size`` in equal increments; every step has a whole number of micro-batches."""

    start: int = Field(ge=1)
    """Rows in the first optimizer step, counted as ``global_batch_size`` is."""
    fraction: float = Field(gt=0, le=1)
    """The warm-up as a share of all steps."""


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
    """``muon``: orthogonalised momentum for the matrices inside the blocks, AdamW for the rest; one learning rate serves both."""
    muon_momentum: Beta = 0.95
    moments_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the optimizer's moving averages; bf16 is rounded stochastically, so that small changes still count."""
    clip_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["bf16", "fp32"] = "fp32"
    """Compute type; master weights are always fp32."""
    compile: bool = False
    seed: Seed = 0
    eval_interval: int | None = Field(default=None, ge=1)
    """Steps between held-out evaluations; None evaluates at the end only."""
    eval_rows: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not divisible by micro_batch_size {self.micro_batch_size}"
            )
        if (warmup := self.batch_warmup) is not None:
            if warmup.start % self.micro_batch_size:
                raise ValueError(
                    f"batch_warmup.start {warmup.start} is not divisible by micro_batch_size {self.micro_batch_size}"
                )
            if warmup.start > self.global_batch_size:
                raise ValueError(f"batch_warmup.start {warmup.start} is more than global_batch_size {self.global_batch_size}")
        if self.tokens is not None and self.steps is not None:
            raise ValueError("tokens and steps are both given; give one")
        if self.warmup_steps is not None and self.warmup_fraction is not None:
            raise ValueError("warmup_steps and warmup_fraction are both given; give one")
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
    peak_tflops: float | Auto = "auto"
    """Peak of one device, for MFU; ``auto`` knows common GPUs and measures a CPU's matrix rate at start."""


class TrainSpec(Spec):
    """One training job, whole. Every default trains."""

    gpu_config: GpuConfig = GpuConfig()
    data_pipeline: DataSpec = DataSpec()
    tokenizer: TokenizerSpec = TokenizerSpec()
    model: ModelSpec = ModelSpec()
    parallel_strategy: ParallelSpec = ParallelSpec()
    training: TrainingSpec = TrainingSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    elastic: ElasticSpec = ElasticSpec()
    monitoring: MonitoringSpec = MonitoringSpec()

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

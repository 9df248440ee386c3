"""What the decoder is made of. Pydantic only: the API process and the CLI import this without torch.

Names are those of Hugging Face's configs, DeepSeek-V3's where it has one of its own.
"""

from math import gcd
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from data.spec_base import Misfit, Spec
from workers.model.presets import PRESETS, PresetName


class _Rule(NamedTuple):
    """What must hold, what to say if it does not, and the fields that it is about."""

    holds: bool
    otherwise: str
    fields: tuple[str, ...]


class YarnSpec(Spec):
    """Rotary embedding stretched to longer contexts (YaRN, arXiv 2309.00071), as ``transformers`` reads these fields."""

    factor: float = Field(ge=1)
    original_max_position_embeddings: int = Field(ge=1)
    beta_fast: float = Field(default=32.0, gt=0)
    beta_slow: float = Field(default=1.0, gt=0)
    mscale: float | None = Field(default=None, gt=0)
    mscale_all_dim: float | None = Field(default=None, gt=0)
    """With latent attention, the whole score is scaled by the square of ``0.1 mscale_all_dim ln(factor) + 1``."""


class ModelSpec(Spec):
    """A DeepSeek-style decoder. ``preset`` gives every field that is not given beside it."""

    preset: PresetName | None = None
    hidden_size: int = Field(default=192, ge=8)
    num_hidden_layers: int = Field(default=4, ge=1, le=10_000)
    max_position_embeddings: int = Field(default=131_072, ge=1)
    """The longest row that the model reads."""

    attention: Literal["gqa", "mla"] = "gqa"
    """Grouped queries (arXiv 2305.13245) or multi-head latent attention (arXiv 2405.04434)."""
    num_attention_heads: int = Field(default=6, ge=1)
    num_attention_heads_by_layer: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Query heads of each layer, where they differ; None: all have ``num_attention_heads``."""
    num_key_value_heads: int = Field(default=2, ge=1)
    head_dim: int | None = Field(default=None, ge=2)
    """None: ``hidden_size / num_attention_heads``."""
    q_lora_rank: int | None = Field(default=None, ge=1)
    """``mla``: size of the queries' latent; None projects them at once."""
    kv_lora_rank: int = Field(default=64, ge=1)
    qk_nope_head_dim: int = Field(default=32, ge=1)
    qk_rope_head_dim: int = Field(default=16, ge=2)
    v_head_dim: int = Field(default=32, ge=1)
    qk_norm: Literal["head", "layer"] | None = None
    """RMS norm of queries and keys before their rotation: of each head, or of all heads of a layer together (OLMoE)."""
    attention_pattern: Literal["full", "sliding", "layered", "hierarchical"] = "full"
    """``layered``: the lower half of the layers (or ``local_layers``) see a window, the upper all of the past."""
    sliding_window: int = Field(default=128, ge=1)
    """Tokens that a query of a local layer sees, its own among them."""
    local_layers: int | None = Field(default=None, ge=0)
    hierarchical_block: int = Field(default=64, ge=2)
    """``hierarchical``: tokens in a block; a query sees its own block and the one before exactly."""
    hierarchical_slots: int = Field(default=16, ge=1)
    """``hierarchical``: pooled keys that stand for each span of the farther past; divides ``hierarchical_block``."""
    segment_length: int | None = Field(default=None, ge=1)
    """Transformer-XL (arXiv 1901.02860): a row is read in segments of so many tokens, each with a memory of the one before."""
    memory_length: int = Field(default=0, ge=0)
    """Tokens of the previous segment that a segment sees, without gradient; at most ``segment_length``."""

    rope_theta: float = Field(default=10_000.0, gt=0)
    partial_rotary_factor: float = Field(default=1.0, gt=0, le=1)
    """``gqa``: the share of each head that is rotated."""
    rope_scaling: YarnSpec | None = None

    intermediate_size: int = Field(default=512, ge=8)
    first_k_dense_replace: int = Field(default=0, ge=0)
    """The first k layers have a dense SwiGLU of ``intermediate_size`` in place of experts."""
    n_routed_experts: int = Field(default=8, ge=0)
    """0: every layer is dense."""
    num_experts_per_tok: int = Field(default=2, ge=1)
    n_shared_experts: int = Field(default=1, ge=0)
    moe_intermediate_size: int = Field(default=192, ge=8)
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    norm_topk_prob: bool = True
    """The weights of a token's experts sum to 1 before ``routed_scaling_factor``."""
    routed_scaling_factor: float = Field(default=1.0, gt=0)
    n_group: int = Field(default=1, ge=1)
    """Node-limited routing: experts lie in this many groups, and a token's experts in ``topk_group`` of them."""
    topk_group: int = Field(default=1, ge=1)
    router_bias_update_rate: float = Field(default=0.004, ge=0)
    """Step of the auxiliary-loss-free balancing bias (arXiv 2408.15664)."""
    router_aux_loss_coef: float = Field(default=0.0, ge=0)
    """Weight of the sequence-wise balance loss (arXiv 2412.19437, eq. 17)."""
    router_z_loss_coef: float = Field(default=0.0, ge=0)
    """Weight of the router's z-loss (arXiv 2202.08906)."""

    num_nextn_predict_layers: int = Field(default=0, ge=0, le=100)
    """Multi-token prediction (arXiv 2412.19437, 2.2): modules that predict one token further each."""
    mtp_loss_coef: float = Field(default=0.3, ge=0)
    """Weight of the mean of their losses."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of what attention and feed-forward add to the residual stream."""
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    initializer_range: float = Field(default=0.02, gt=0)
    tie_word_embeddings: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        name = given.get("preset") if isinstance(given, dict) else None
        return {**PRESETS[name].model, **given} if isinstance(name, str) and name in PRESETS else given

    @property
    def resolved_head_dim(self) -> int:
        """Of grouped-query attention."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """Channels of each head that are rotated."""
        return self.qk_rope_head_dim if self.attention == "mla" else int(self.resolved_head_dim * self.partial_rotary_factor)

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.attention == "mla" else self.resolved_head_dim

    @property
    def value_head_dim(self) -> int:
        return self.v_head_dim if self.attention == "mla" else self.resolved_head_dim

    @property
    def dense_layers(self) -> int:
        """Layers from the bottom that have no experts."""
        return self.first_k_dense_replace if self.n_routed_experts else self.num_hidden_layers

    def heads(self, layer: int) -> int:
        """Query heads of a layer. Modules of multi-token prediction lie above the last one."""
        by_layer = self.num_attention_heads_by_layer
        return by_layer[layer] if by_layer is not None and layer < len(by_layer) else self.num_attention_heads

    def pattern(self, layer: int) -> Literal["full", "sliding", "hierarchical"]:
        """What a layer's queries see."""
        if self.attention_pattern != "layered":
            return self.attention_pattern
        local = self.num_hidden_layers // 2 if self.local_layers is None else self.local_layers
        return "sliding" if layer < local else "full"

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        for rule in (*self._attention_rules(), *self._pattern_rules(), *self._expert_rules()):
            if not rule.holds:
                raise Misfit(rule.otherwise, *rule.fields)
        return self

    def _attention_rules(self) -> list[_Rule]:
        hidden, heads, groups = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        by_layer = self.num_attention_heads_by_layer
        rotated, fields = self._rotated()
        rules = [
            _Rule(
                self.attention == "mla" or self.head_dim is not None or hidden % heads == 0,
                f"hidden_size {hidden} is not divisible by num_attention_heads {heads}; the nearest that gives an even head is"
                f" {_nearest(hidden, 2 * heads)}, or set head_dim",
                ("hidden_size", "num_attention_heads"),
            ),
            _Rule(
                self.rotary_dim >= 2 and self.rotary_dim % 2 == 0,
                f"{rotated} rotates {self.rotary_dim} channels of a head; rotary embedding needs pairs: choose what makes it"
                f" {_nearest(self.rotary_dim, 2)}",
                fields,
            ),
            _Rule(
                by_layer is None or len(by_layer) == self.num_hidden_layers,
                f"num_attention_heads_by_layer has {len(by_layer or ())} entries for {self.num_hidden_layers} layers; give one"
                " for each layer",
                ("num_attention_heads_by_layer", "num_hidden_layers"),
            ),
            _Rule(
                self.qk_norm is None or self.attention == "gqa",
                "qk_norm goes with attention gqa; mla norms its latents, so leave it out",
                ("qk_norm", "attention"),
            ),
        ]
        if self.attention == "gqa":
            rules += [
                _Rule(
                    count % groups == 0,
                    f"{name} {count} is not divisible by num_key_value_heads {groups}, which must divide it;"
                    f" {gcd(count, groups)} does",
                    ("num_key_value_heads", name),
                )
                for name, counts in (("num_attention_heads", (heads,)), ("num_attention_heads_by_layer", by_layer or ()))
                for count in counts
            ]
        return rules

    def _rotated(self) -> tuple[str, tuple[str, ...]]:
        """What rotary embedding works on, and the fields that say so."""
        if self.attention == "mla":
            return f"qk_rope_head_dim {self.qk_rope_head_dim}", ("qk_rope_head_dim",)
        text = f"head_dim {self.resolved_head_dim} with partial_rotary_factor {self.partial_rotary_factor}"
        return text, ("head_dim", "partial_rotary_factor", "hidden_size", "num_attention_heads")

    def _pattern_rules(self) -> list[_Rule]:
        block, slots, segment = self.hierarchical_block, self.hierarchical_slots, self.segment_length
        return [
            _Rule(
                (self.local_layers or 0) <= self.num_hidden_layers,
                f"local_layers {self.local_layers} is more than num_hidden_layers {self.num_hidden_layers}",
                ("local_layers", "num_hidden_layers"),
            ),
            _Rule(
                self.attention_pattern != "hierarchical" or block % slots == 0,
                f"hierarchical_block {block} is not divisible by hierarchical_slots {slots}, which must divide it;"
                f" {gcd(block, slots)} does",
                ("hierarchical_slots", "hierarchical_block"),
            ),
            _Rule(
                self.memory_length == 0 or segment is not None,
                f"memory_length {self.memory_length} is of segments; set segment_length, to at least as many tokens",
                ("memory_length",),
            ),
            _Rule(
                segment is None or self.memory_length <= segment,
                f"memory_length {self.memory_length} is more than segment_length {segment}; a segment remembers the one before",
                ("memory_length", "segment_length"),
            ),
            _Rule(
                segment is None or self.attention_pattern == "full",
                f"segment_length goes with attention_pattern full, not {self.attention_pattern}",
                ("segment_length", "attention_pattern"),
            ),
            _Rule(
                segment is None or self.num_nextn_predict_layers == 0,
                "segment_length goes without multi-token prediction; set num_nextn_predict_layers to 0",
                ("num_nextn_predict_layers", "segment_length"),
            ),
        ]

    def _expert_rules(self) -> list[_Rule]:
        experts, groups, chosen = self.n_routed_experts, self.n_group, self.num_experts_per_tok
        rules = [
            _Rule(
                self.first_k_dense_replace <= self.num_hidden_layers,
                f"first_k_dense_replace {self.first_k_dense_replace} is more than num_hidden_layers {self.num_hidden_layers}",
                ("first_k_dense_replace", "num_hidden_layers"),
            ),
        ]
        if experts:
            in_groups = experts // groups * self.topk_group
            rules += [
                _Rule(
                    chosen <= experts,
                    f"num_experts_per_tok {chosen} is more than n_routed_experts {experts}",
                    ("num_experts_per_tok", "n_routed_experts"),
                ),
                _Rule(
                    experts % groups == 0,
                    f"n_routed_experts {experts} is not divisible by n_group {groups}, which must divide it;"
                    f" {gcd(experts, groups)} does",
                    ("n_group", "n_routed_experts"),
                ),
                _Rule(
                    self.topk_group <= groups,
                    f"topk_group {self.topk_group} is more than n_group {groups}",
                    ("topk_group", "n_group"),
                ),
                _Rule(
                    groups == 1 or experts // groups >= 2,
                    f"n_group {groups} leaves one expert a group; groups are ranked by their best two: at most {experts // 2}",
                    ("n_group", "n_routed_experts"),
                ),
                _Rule(
                    chosen <= in_groups,
                    f"num_experts_per_tok {chosen} is more than the {in_groups} experts in topk_group {self.topk_group} groups;"
                    f" raise topk_group to {-(-chosen * groups // experts)}",
                    ("num_experts_per_tok", "topk_group", "n_group"),
                ),
            ]
        return rules


def _nearest(size: int, of: int) -> int:
    """The multiple of ``of`` that is nearest to ``size``; not 0."""
    return max(round(size / of), 1) * of

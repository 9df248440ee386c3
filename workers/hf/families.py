"""Which class of ``transformers`` computes what a ``ModelSpec`` describes. Free of torch.

| class | attention | feed-forward |
|---|---|---|
| ``LlamaForCausalLM`` | grouped queries | dense |
| ``OlmoeForCausalLM`` | grouped queries, qk-norm over the layer | softmax experts in every layer, none shared |
| ``Glm4MoeForCausalLM`` | grouped queries, partial rotary embedding, qk-norm of heads | dense, then sigmoid experts |
| ``DeepseekV2ForCausalLM`` | latent | dense, then softmax experts |
| ``DeepseekV3ForCausalLM`` | latent | dense, then sigmoid experts |

``Glm4Moe`` and ``DeepseekV3`` with nothing but dense layers also stand for the dense models that ``Llama`` cannot compute.
"""

from typing import Literal

from workers.hf.errors import NotExportable
from workers.model.spec import ModelSpec

Family = Literal["llama", "olmoe", "glm4_moe", "deepseek_v2", "deepseek_v3"]
"""``model_type`` in config.json."""

CLASSES: dict[Family, str] = {
    "llama": "LlamaForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}


def family_of(spec: ModelSpec) -> Family:
    """Raises NotExportable, naming the field for which there is no class."""
    _require_one_kind_of_layer(spec)
    if spec.dense_layers == spec.num_hidden_layers:
        return _dense(spec)
    if spec.scoring_func == "softmax":
        return _softmax(spec)
    _require(spec.n_routed_experts >= 2, "n_routed_experts", "1: the router ranks groups by their best two experts")
    return "deepseek_v3" if spec.attention == "mla" else _glm(spec)


def training_only(spec: ModelSpec) -> list[str]:
    """Parts of the spec that only training has, in words: an export leaves them out."""
    parts = []
    if depth := spec.num_nextn_predict_layers:
        parts.append(f"modules of multi-token prediction ({depth}) are left out: they only help training")
    if spec.dropout:
        parts.append(f"dropout {spec.dropout:g} is left out: it only acts in training")
    return parts


def heads_of(spec: ModelSpec) -> int:
    """Query heads of every layer, of a spec whose layers are alike."""
    return spec.heads(0)


def _dense(spec: ModelSpec) -> Family:
    if spec.attention == "mla":
        return "deepseek_v3"
    plain = spec.qk_norm is None and spec.partial_rotary_factor == 1.0
    return "llama" if plain and spec.hidden_size % heads_of(spec) == 0 else _glm(spec)


def _glm(spec: ModelSpec) -> Family:
    _require(spec.qk_norm != "layer", "qk_norm", "layer: only the class for softmax experts without shared ones norms so")
    return "glm4_moe"


def _softmax(spec: ModelSpec) -> Family:
    _require(spec.n_group == 1, "n_group", f"{spec.n_group} with scoring_func softmax: groups are ranked otherwise there")
    if spec.attention == "mla":
        heads = heads_of(spec)
        _require(
            not spec.norm_topk_prob, "norm_topk_prob", "true with scoring_func softmax and attention mla: never normalised"
        )
        wrong = f"{spec.hidden_size} is not divisible by the {heads} heads, which this class asks for"
        _require(spec.hidden_size % heads == 0, "hidden_size", wrong)
        return "deepseek_v2"
    dense, width = spec.dense_layers, heads_of(spec) * spec.resolved_head_dim
    softmax = "with scoring_func softmax and attention gqa"
    _require(spec.qk_norm == "layer", "qk_norm", f"{spec.qk_norm or 'none'} {softmax}: the class has layer")
    _require(spec.n_shared_experts == 0, "n_shared_experts", f"{spec.n_shared_experts} {softmax}: the class has none")
    _require(dense == 0, "first_k_dense_replace", f"{dense} {softmax}: the class has experts in every layer")
    _require(spec.partial_rotary_factor == 1.0, "partial_rotary_factor", f"{spec.partial_rotary_factor:g} {softmax}")
    _require(spec.routed_scaling_factor == 1.0, "routed_scaling_factor", f"{spec.routed_scaling_factor:g} {softmax}")
    _require(
        width == spec.hidden_size, "head_dim", f"{spec.resolved_head_dim}: the heads make up {width} channels, not hidden_size"
    )
    return "olmoe"


def _require_one_kind_of_layer(spec: ModelSpec) -> None:
    layers = range(spec.num_hidden_layers)
    full = all(spec.pattern(layer) == "full" for layer in layers)
    _require(full, "attention_pattern", f"{spec.attention_pattern}: every layer sees all of the past there")
    alike = len({spec.heads(layer) for layer in layers}) == 1
    _require(alike, "num_attention_heads_by_layer", "with heads that differ by layer")
    _require(spec.segment_length is None, "segment_length", f"{spec.segment_length}: there is no memory of segments there")


def _require(holds: bool, field: str, what: str) -> None:
    if not holds:
        raise NotExportable(f"no class of transformers computes {field} {what}", pointer=f"/model/{field}")

"""Parameters and floating-point operations of a decoder, counted from its spec. Free of torch; exact for ``workers.model``."""

from math import log2

from pydantic import BaseModel, ConfigDict

from workers.model.spec import ModelSpec


class Parameters(BaseModel):
    """``active``: those that take part in one token's forward pass (an embedding row look-up counts as the whole matrix);
    modules of multi-token prediction, which only training has, are in ``total`` alone."""

    model_config = ConfigDict(frozen=True)

    total: int
    active: int
    by_part: dict[str, int]


def count_parameters(model: ModelSpec, vocab_size: int) -> Parameters:
    """Of ``workers.model.decoder.Decoder``. The routers' balancing biases are buffers and do not count."""
    d, layers, dense = model.hidden_size, model.num_hidden_layers, model.dense_layers
    moe = layers - dense
    expert = 3 * d * model.moe_intermediate_size
    attention = [attention_matrices(model, layer) for layer in range(layers)]
    parts = {
        "embedding": vocab_size * d,
        "head": 0 if model.tie_word_embeddings else vocab_size * d,
        "attention": sum(attention),
        "norms": (2 * layers + 1) * d + sum(_attention_norms(model, layer) for layer in range(layers)),
        "dense_feed_forward": dense * 3 * d * model.intermediate_size,
        "routed_experts": moe * model.n_routed_experts * expert,
        "shared_experts": moe * model.n_shared_experts * expert,
        "routers": moe * model.n_routed_experts * d,
        "multi_token_prediction": model.num_nextn_predict_layers * _prediction_module(model),
    }
    idle = moe * (model.n_routed_experts - model.num_experts_per_tok) * expert
    total = sum(parts.values())
    return Parameters(total=total, active=total - idle - parts["multi_token_prediction"], by_part=parts)


def flops_per_token(model: ModelSpec, vocab_size: int, sequence_length: int) -> float:
    """Forward and backward: 6 for every parameter in a matrix product that the token takes part in, and attention over the
    keys that a query sees on average (causal: half the row). Recomputation is not counted (arXiv 2204.02311)."""
    count = count_parameters(model, vocab_size)
    look_up = 0 if model.tie_word_embeddings else count.by_part["embedding"]
    matrix = count.active - count.by_part["norms"] - look_up
    layers = range(model.num_hidden_layers + model.num_nextn_predict_layers)
    attention = sum(
        6 * model.heads(layer) * (model.qk_head_dim + model.value_head_dim) * _keys(model, layer, sequence_length)
        for layer in layers
    )
    further = 0
    if depth := model.num_nextn_predict_layers:
        idle = (model.n_routed_experts - model.num_experts_per_tok) * 3 * model.hidden_size * model.moe_intermediate_size
        idle = idle if model.n_routed_experts else 0
        norms = 5 * model.hidden_size + _attention_norms(model, model.num_hidden_layers)
        further = depth * (_prediction_module(model) - idle - norms + vocab_size * model.hidden_size)
    return 6.0 * (matrix + further) + attention


def logical_elements(model: ModelSpec) -> int:
    """Elements of the matrices inside blocks and prediction modules, which Muon updates: no embedding, head, router or norm."""
    d, last, further = model.hidden_size, model.num_hidden_layers, model.num_nextn_predict_layers
    moe = (model.n_routed_experts + model.n_shared_experts) * model.moe_intermediate_size
    predicting = moe if model.n_routed_experts else model.intermediate_size
    widths = model.dense_layers * model.intermediate_size + (last - model.dense_layers) * moe + further * predicting
    attention = sum(attention_matrices(model, layer) for layer in range(last + further))
    return attention + 3 * d * widths + further * 2 * d * d


def attention_matrices(model: ModelSpec, layer: int) -> int:
    """Elements of one layer's attention matrices."""
    d, heads = model.hidden_size, model.heads(layer)
    out = d * heads * model.value_head_dim
    if model.attention == "gqa":
        return d * (heads + 2 * model.num_key_value_heads) * model.resolved_head_dim + out
    queries, latent = heads * model.qk_head_dim, model.kv_lora_rank
    q = d * queries if model.q_lora_rank is None else model.q_lora_rank * (d + queries)
    return q + d * (latent + model.qk_rope_head_dim) + latent * heads * (model.qk_nope_head_dim + model.v_head_dim) + out


def _attention_norms(model: ModelSpec, layer: int) -> int:
    if model.attention == "mla":
        return model.kv_lora_rank + (model.q_lora_rank or 0)
    sizes = {None: 0, "head": 2, "layer": model.heads(layer) + model.num_key_value_heads}
    return sizes[model.qk_norm] * model.resolved_head_dim


def _prediction_module(model: ModelSpec) -> int:
    d, last = model.hidden_size, model.num_hidden_layers
    experts = model.n_routed_experts + model.n_shared_experts
    moe = experts * 3 * d * model.moe_intermediate_size + model.n_routed_experts * d
    feed_forward = moe if model.n_routed_experts else 3 * d * model.intermediate_size
    return 2 * d * d + 5 * d + attention_matrices(model, last) + _attention_norms(model, last) + feed_forward


def _keys(model: ModelSpec, layer: int, length: int) -> float:
    """Keys that a query of a row of one document sees on average."""
    if model.segment_length is not None:
        segment = min(model.segment_length, length)
        return segment / 2 + model.memory_length * (1 - segment / length) if length else 0.0
    if model.pattern(layer) == "sliding":
        window = min(model.sliding_window, length)
        return window * (1 - window / (2 * max(length, 1)))
    if model.pattern(layer) == "hierarchical":
        block = model.hierarchical_block
        far = model.hierarchical_slots * log2(max(length / block, 1.0)) / 2
        return min(length / 2, 1.5 * block + far)
    return length / 2

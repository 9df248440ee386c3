"""What a decoder's parts keep in memory for the backward pass, and what that pass itself takes, in bytes. Free of torch.

A block is a row of stages in the order of its forward pass; each says what autograd holds of it, operator by operator, as
``workers.model`` runs eagerly. Small tensors (one number a token) are left out where larger ones stand beside them.

Legend: B rows, T positions, N = B T tokens, D hidden size, H query heads, G key-value heads, d head size of queries and keys,
e of values, E experts, K experts a token, I expert width, W width of a dense layer, c bytes of a number in the compute type.
"""

from typing import Literal, NamedTuple

from workers.model.spec import ModelSpec

Mode = Literal["none", "selective", "full"]
"""``full`` keeps a block's input; ``selective`` also what matrix products and attention gave; ``none`` keeps all that gradients
need."""

FP32 = 4
INDEX = 8


class Setting(NamedTuple):
    """Where and on what a block runs."""

    rows: int
    length: int
    compute: int
    """c"""
    gpu: bool
    casts: bool
    """Weights are cast at use: masters are fp32, the compute type is not, and nothing has gathered them in it."""
    dropout: bool

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def packed(self) -> bool:
        """Attention by the variable-length kernels, which need no mask."""
        return self.gpu and self.compute < FP32

    @property
    def half(self) -> bool:
        return self.compute < FP32


class Stage(NamedTuple):
    """``work`` is the most that its backward pass holds beside everything kept, its output's gradient among it."""

    kept: int = 0
    results: int = 0
    """What ``selective`` keeps of it: what matrix products, attention and sorting gave."""
    work: int = 0
    gradients: int = 0
    """Of its parameters, in fp32."""


def stages(model: ModelSpec, layer: int, at: Setting) -> list[Stage]:
    """One block; layers from ``num_hidden_layers`` on are those of multi-token prediction."""
    c, hidden = at.compute, at.tokens * model.hidden_size
    attention = _latent_attention(model, layer, at) if model.attention == "mla" else _grouped_attention(model, layer, at)
    dense = layer < model.dense_layers or not model.n_routed_experts
    feed_forward = _dense(model.hidden_size, model.intermediate_size, at) if dense else _experts(model, at)
    # Dropout's draws are made again; its mask is kept in the compute type.
    dropped = [Stage(kept=hidden * c, work=2 * hidden * c)] if at.dropout else []
    norm = [norm_stage(hidden, at)]
    return [*norm, *attention, *dropped, *norm, *feed_forward, *dropped]


def norm_stage(elements: int, at: Setting) -> Stage:
    """A CPU's RMS norm is made of small operators: it keeps its input and the normalised values in fp32. A GPU's is one."""
    if at.gpu:
        return Stage(kept=2 * elements * at.compute, work=2 * elements * at.compute)
    return Stage(kept=elements * (2 * FP32 + at.compute), work=4 * elements * FP32)


def product(inputs: int, outputs: int, tokens: int, at: Setting) -> Stage:
    """A matrix product with its weight. What it reads and gives is counted where that is kept."""
    c, weight = at.compute, inputs * outputs
    return Stage(
        kept=weight * c if at.casts else 0,
        results=tokens * outputs * c,
        work=tokens * (inputs + outputs) * c + weight * _gradient_bytes(at),
        gradients=weight * FP32,
    )


def _gradient_bytes(at: Setting) -> int:
    """Of an element of a weight: in fp32, and in the compute type beside, which takes the place of the weight's own cast."""
    return FP32 + (at.compute if at.half and not at.casts else 0)


def sight_bytes(model: ModelSpec, at: Setting) -> int:
    """Masks of a micro-batch of packed documents, shared by all layers."""
    if at.packed:
        return 0
    layers = range(model.num_hidden_layers + model.num_nextn_predict_layers)
    return sum(at.tokens * keys for keys in {_masked_keys(model, layer, at) for layer in layers})


def _masked_keys(model: ModelSpec, layer: int, at: Setting) -> int:
    """Keys that a query's mask has a place for; hierarchical attention has none."""
    pattern, length = model.pattern(layer), at.length
    if at.packed or pattern == "hierarchical":
        return 0
    if model.segment_length is not None:
        return model.segment_length + model.memory_length
    return 2 * model.sliding_window if pattern == "sliding" and 2 * model.sliding_window < length else length


def _grouped_attention(model: ModelSpec, layer: int, at: Setting) -> list[Stage]:
    c, tokens, hidden, size = at.compute, at.tokens, model.hidden_size, model.resolved_head_dim
    heads, groups = model.heads(layer), model.num_key_value_heads
    project = product(hidden, (heads + 2 * groups) * size, tokens, at)
    normed = []
    if model.qk_norm is not None:
        elements = tokens * (heads + groups) * size
        # The rotation copies what the norm gives. In fp32 the norm's input is a copy only of heads that lie apart.
        apart = 0 if groups == 1 else heads if model.qk_norm == "head" else heads + groups
        viewed_bytes = 0 if at.half or at.gpu else elements * FP32 - tokens * apart * size * FP32
        norm = norm_stage(elements, at)
        normed = [norm._replace(kept=norm.kept - elements * c - viewed_bytes)]
    # Queries and keys are copied by their rotation; values are a view of all three, unless a window gathers them.
    windowed = _masked_keys(model, layer, at) not in (0, at.length)
    viewed = not windowed or (normed and not at.half)
    project = project._replace(kept=project.kept + (project.results if viewed else 0))
    attend = _attend(model, layer, at, keys=tokens * groups * size * c, values=tokens * groups * size * c if windowed else 0)
    # A memory's keys and values are projected once more, for gradients of the weights alone.
    past = []
    if model.memory_length:
        elements = tokens * groups * size
        viewed_bytes = 0 if at.half or at.gpu or model.qk_norm != "head" else elements * FP32
        past = [
            Stage(kept=norm_stage(elements, at).kept - elements * c + viewed_bytes if normed else 0, results=2 * elements * c)
        ]
    return [project, *normed, *past, attend, product(heads * size, hidden, tokens, at)]


def _latent_attention(model: ModelSpec, layer: int, at: Setting) -> list[Stage]:
    c, tokens, hidden, heads = at.compute, at.tokens, model.hidden_size, model.heads(layer)
    latent, rope, queries = model.kv_lora_rank, model.qk_rope_head_dim, heads * model.qk_head_dim
    parts = []
    if model.q_lora_rank is None:
        parts.append(product(hidden, queries, tokens, at))
    else:
        parts.append(product(hidden, model.q_lora_rank, tokens, at))
        parts.append(norm_stage(tokens * model.q_lora_rank, at))
        parts.append(product(model.q_lora_rank, queries, tokens, at))
    down = product(hidden, latent + rope, tokens, at)
    # The latent is a view: where its norm keeps it as it is, the shared key's channels stay with it.
    beside = 0 if at.half and not at.gpu else tokens * rope * c
    norm = norm_stage(tokens * latent, at)
    parts += [down._replace(kept=down.kept + beside), norm]
    up = product(latent, heads * (model.qk_nope_head_dim + model.v_head_dim), tokens, at)
    copied = model.v_head_dim != model.qk_head_dim or _masked_keys(model, layer, at) not in (0, at.length)
    parts.append(up if copied else up._replace(kept=up.kept + up.results))
    values = tokens * heads * c * _value_size(model) if copied else 0
    attend = _attend(model, layer, at, keys=tokens * queries * c, values=values)
    # A memory's keys and values go the same way once more, for gradients of the weights alone.
    again = Stage(kept=beside + norm.kept + up.kept, results=down.results + up.results)
    past = [again] if model.memory_length else []
    return [*parts, *past, attend, product(heads * model.v_head_dim, hidden, tokens, at)]


def _value_size(model: ModelSpec) -> int:
    """Of a head, as the kernels want it: at least as wide as its key."""
    return max(model.qk_head_dim, model.value_head_dim)


def _attend(model: ModelSpec, layer: int, at: Setting, keys: int, values: int) -> Stage:
    """``keys`` and ``values``: what is copied of them, in bytes, without windows."""
    c, tokens, heads, masked = at.compute, at.tokens, model.heads(layer), _masked_keys(model, layer, at)
    queries, gives = tokens * heads * model.qk_head_dim * c, tokens * heads * _value_size(model) * c
    if masked not in (0, at.length):
        block = model.segment_length or model.sliding_window
        keys, values = keys * masked // block, values * masked // block
    gradients = gives + queries + 2 * keys + queries + keys
    if model.pattern(layer) == "hierarchical":
        blocks = -(-at.length // model.hierarchical_block)
        seen = 2 * model.hierarchical_block + max(blocks - 2, 0).bit_length() * model.hierarchical_slots
        # Only products inside it are seen by ``selective``: of every chunk, its scores and sums.
        return Stage(queries + keys + values + gives, tokens * heads * seen * c + gives, gradients)
    # Of padded values the output is cut to size, which is a copy.
    cut = tokens * heads * model.value_head_dim * c if model.value_head_dim < model.qk_head_dim else 0
    # Beside its output, one number a query and head; the mask is turned into numbers in every layer.
    kept = queries + keys + values + gives + cut + tokens * heads * FP32 + tokens * masked * c
    return Stage(kept=kept, results=gives + tokens * heads * FP32, work=gradients)


def _dense(hidden: int, width: int, at: Setting) -> list[Stage]:
    """SwiGLU; gate and up are brought together in a copy whatever the type."""
    c, tokens = at.compute, at.tokens
    up, down = product(hidden, 2 * width, tokens, at), product(width, hidden, tokens, at)
    weight, inside = 2 * hidden * width, tokens * width * c
    return [
        up._replace(kept=weight * c + up.results, work=tokens * (hidden + 2 * width) * c + weight * FP32),
        Stage(work=5 * inside),
        down._replace(kept=down.kept + inside),
    ]


def _experts(model: ModelSpec, at: Setting) -> list[Stage]:
    c, tokens, hidden = at.compute, at.tokens, model.hidden_size
    experts, chosen, width = model.n_routed_experts, model.num_experts_per_tok, model.moe_intermediate_size
    places, weight = tokens * chosen, experts * width * hidden
    scores = tokens * experts * FP32
    wide = tokens * hidden * FP32 if at.half else 0
    losses = (2 if model.router_aux_loss_coef > 0 else 0) + (1 if model.router_z_loss_coef > 0 else 0)
    router = Stage(
        kept=scores * (1 + losses) + wide + places * (3 * INDEX + 3 * FP32),
        results=scores + places * (3 * INDEX + FP32),
        work=3 * scores + wide + tokens * hidden * c,
        gradients=experts * hidden * FP32,
    )
    up = Stage(
        kept=places * (hidden + 2 * width) * c + 2 * weight * c,
        results=places * 2 * width * c,
        work=places * (hidden + 2 * width) * c + 2 * weight * FP32,
        gradients=2 * weight * FP32,
    )
    gated = Stage(work=5 * places * width * c)
    down = Stage(
        kept=places * (hidden + width) * c + (weight * c if at.casts else 0),
        results=places * hidden * c,
        work=places * (hidden + width) * c + weight * _gradient_bytes(at),
        gradients=weight * FP32,
    )
    combine = Stage(work=places * hidden * (2 * FP32 + (c if at.half else 0)) + tokens * hidden * c)
    shared = _dense(hidden, model.n_shared_experts * width, at) if model.n_shared_experts else []
    return [router, up, gated, down, combine, *shared]

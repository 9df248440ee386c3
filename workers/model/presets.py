"""Models by name: what each is made of, and how large it is said to be.

Sources are the models' published configs; where there is none, the shape is Manta's own and the counts are stated here.
"""

from typing import Any, Literal, NamedTuple

PresetName = Literal[
    "tiny",
    "1b-a200m",
    "olmoe-7b-a1b",
    "1.3b",
    "7b",
    "13b",
    "34b",
    "67b",
    "deepseek-v2-lite",
    "deepseek-v3",
    "r1-1200b",
]


class Preset(NamedTuple):
    model: dict[str, Any]
    """Fields of ``ModelSpec``."""
    vocab_size: int
    """The vocabulary that the counts are of."""
    total: float
    """Parameters, without the modules of multi-token prediction."""
    active: float
    """Parameters that take part in one token's forward pass, the embedding and the head whole. (DeepSeek's own figures, 2.4 and
    37 billion, leave the embedding out.)"""
    source: str


def _llama(hidden: int, layers: int, heads: int, groups: int, width: int, **more: Any) -> dict[str, Any]:
    """A dense decoder."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": width,
        "n_routed_experts": 0,
        "n_shared_experts": 0,
        **more,
    }


def _yarn(mscale: float) -> dict[str, float]:
    return {"factor": 40, "original_max_position_embeddings": 4096, "mscale": mscale, "mscale_all_dim": mscale}


_LATENTS = {
    "attention": "mla",
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}

_DEEPSEEK_V3 = {
    **_LATENTS,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "max_position_embeddings": 163_840,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "intermediate_size": 18_432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "routed_scaling_factor": 2.5,
    "n_group": 8,
    "topk_group": 4,
    "router_bias_update_rate": 0.001,
    "router_aux_loss_coef": 0.0001,
    "num_nextn_predict_layers": 1,
    "rope_scaling": _yarn(1.0),
    "initializer_range": 0.006,
}

PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "moe_intermediate_size": 128},
        *(2048, 2.49e6, 1.31e6),
        "examples/quickstart.yaml",
    ),
    "1b-a200m": Preset(
        {
            "hidden_size": 768,
            "num_hidden_layers": 13,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "qk_norm": "head",
            "intermediate_size": 2304,
            "moe_intermediate_size": 512,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
        },
        *(50_304, 1.02e9, 0.203e9),
        "stated here",
    ),
    "olmoe-7b-a1b": Preset(
        {
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "max_position_embeddings": 4096,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "qk_norm": "layer",
            "moe_intermediate_size": 1024,
            "n_routed_experts": 64,
            "num_experts_per_tok": 8,
            "n_shared_experts": 0,
            "scoring_func": "softmax",
            "norm_topk_prob": False,
            "router_bias_update_rate": 0.0,
            "router_aux_loss_coef": 0.01,
            "router_z_loss_coef": 0.001,
            "rms_norm_eps": 1e-5,
        },
        *(50_304, 6.92e9, 1.28e9),
        "arXiv 2409.02060",
    ),
    "1.3b": Preset(
        _llama(2048, 24, 16, 16, 5504, max_position_embeddings=16_384, rope_theta=1e5),
        *(32_256, 1.35e9, 1.35e9),
        "DeepSeek-Coder 1.3B, arXiv 2401.14196, without its linear scaling of positions",
    ),
    "7b": Preset(
        _llama(4096, 32, 32, 32, 11_008, max_position_embeddings=4096, rms_norm_eps=1e-5),
        *(32_000, 6.74e9, 6.74e9),
        "Llama 2 7B, arXiv 2307.09288",
    ),
    "13b": Preset(
        _llama(5120, 40, 40, 40, 13_824, max_position_embeddings=4096, rms_norm_eps=1e-5),
        *(32_000, 13.02e9, 13.02e9),
        "Llama 2 13B, arXiv 2307.09288",
    ),
    "34b": Preset(
        _llama(8192, 48, 64, 8, 22_016, max_position_embeddings=16_384, rope_theta=1e6, rms_norm_eps=1e-5),
        *(32_000, 33.74e9, 33.74e9),
        "Code Llama 34B, arXiv 2308.12950",
    ),
    "67b": Preset(
        _llama(8192, 95, 64, 8, 22_016, max_position_embeddings=4096),
        *(102_400, 67.42e9, 67.42e9),
        "DeepSeek LLM 67B, arXiv 2401.02954",
    ),
    "deepseek-v2-lite": Preset(
        {
            **_LATENTS,
            "hidden_size": 2048,
            "num_hidden_layers": 27,
            "max_position_embeddings": 163_840,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "intermediate_size": 10_944,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "scoring_func": "softmax",
            "norm_topk_prob": False,
            "router_bias_update_rate": 0.0,
            "router_aux_loss_coef": 0.001,
            "rope_scaling": _yarn(0.707),
        },
        *(102_400, 15.7e9, 2.66e9),
        "arXiv 2405.04434",
    ),
    "deepseek-v3": Preset(_DEEPSEEK_V3, *(129_280, 671e9, 37.5e9), "arXiv 2412.19437"),
    "r1-1200b": Preset(
        {
            **_DEEPSEEK_V3,
            "num_hidden_layers": 63,
            "moe_intermediate_size": 3584,
            "num_experts_per_tok": 48,
        },
        *(129_280, 1.2e12, 240e9),
        "stated here",
    ),
}

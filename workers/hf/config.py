"""``config.json`` and ``ModelSpec``: the same model in two vocabularies. Free of torch.

Written as transformers 5 reads it, with the older spelling of the rotary settings beside the new one for other readers.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from workers.hf.errors import PretrainedMismatch, PretrainedUnreadable
from workers.hf.families import CLASSES, Family, family_of, heads_of
from workers.model.spec import ModelSpec

Config = Mapping[str, Any]

DENSE: dict[str, Any] = {"n_routed_experts": 0, "n_shared_experts": 0}
_YARN = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
_LATENT = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_EXPERTS = ("n_routed_experts", "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size", "routed_scaling_factor")
_ROUTER = (*_EXPERTS, "norm_topk_prob", "n_group", "topk_group")

# What the classes of transformers assume where config.json does not say. Sizes are not among them: a file without its sizes
# is no description of a model.
_ASSUMED: dict[Family, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "num_key_value_heads": None},
    "olmoe": {"rms_norm_eps": 1e-5, "num_key_value_heads": None, "norm_topk_prob": False},
    "glm4_moe": {
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "use_qk_norm": False,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
    },
    "deepseek_v2": {
        "rms_norm_eps": 1e-6,
        "first_k_dense_replace": 0,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
    },
    "deepseek_v3": {
        "rms_norm_eps": 1e-6,
        "first_k_dense_replace": 3,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
    },
}


def to_config(spec: ModelSpec, vocab_size: int) -> dict[str, Any]:
    """``config.json`` of a model; begin and end marks are for whoever knows the tokenizer to put in. Raises NotExportable."""
    family = family_of(spec)
    config: dict[str, Any] = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "dtype": "float32",
        "vocab_size": vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": heads_of(spec),
        "num_key_value_heads": heads_of(spec) if spec.attention == "mla" else spec.num_key_value_heads,
        "max_position_embeddings": spec.max_position_embeddings,
        "intermediate_size": spec.intermediate_size,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": spec.rms_norm_eps,
        "initializer_range": spec.initializer_range,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "use_cache": True,
    }
    return config | _rotary(spec, family) | _family_fields(spec, family)


def from_config(config: Config) -> tuple[ModelSpec, int]:
    """The model that ``config.json`` describes, and the size of its vocabulary.

    Raises:
        PretrainedUnreadable: a size is missing or is none.
        PretrainedMismatch: the architecture is another one, or has a part that the decoder cannot compute.
    """
    family = family_in(config)
    _refuse_foreign_parts(config, family)
    known = _Fields({**_ASSUMED[family], **config})
    try:
        return ModelSpec.model_validate(_spec_fields(known, family)), _vocabulary(known)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = str(first["msg"]).removeprefix("Value error, ")
        raise PretrainedUnreadable(f"config.json describes no model: {where + ': ' if where else ''}{what}") from error
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise PretrainedUnreadable(f"config.json describes no model: {error}") from error


def _vocabulary(known: "_Fields") -> int:
    size = known["vocab_size"]
    if type(size) is not int or size < 1:
        raise ValueError(f"vocab_size {size!r} is no number of tokens")
    return size


def _spec_fields(known: "_Fields", family: Family) -> dict[str, Any]:
    fields: dict[str, Any] = {
        **known.take("hidden_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps"),
        "max_position_embeddings": known.get("max_position_embeddings", 131_072),
        "initializer_range": known.get("initializer_range", 0.02),
        "tie_word_embeddings": known.get("tie_word_embeddings", False),
        **_rotary_fields(known, family),
        **_feed_forward_fields(known, family),
    }
    if family in ("deepseek_v2", "deepseek_v3"):
        return fields | {"attention": "mla", **known.take(*_LATENT)}
    groups = known["num_key_value_heads"]
    return fields | {
        "num_key_value_heads": known["num_attention_heads"] if groups is None else groups,
        "head_dim": known.get("head_dim") if family != "olmoe" else None,
        "qk_norm": _qk_norm(known, family),
    }


def family_in(config: Config) -> Family:
    """Raises PretrainedMismatch: it is no class that the decoder can compute."""
    found = config.get("model_type")
    if not isinstance(found, str) or found not in CLASSES:
        known = ", ".join(CLASSES)
        raise PretrainedMismatch(f"config.json has model_type {found!r}; the decoder can take over {known}")
    return found


def facts(spec: ModelSpec) -> dict[str, Any]:
    """What decides a model's weights and what they compute, by field; fields that do not matter to this one are left out."""
    dense, layers = spec.dense_layers, spec.num_hidden_layers
    names = [
        "attention",
        "hidden_size",
        "num_hidden_layers",
        "rope_theta",
        "rope_scaling",
        "rms_norm_eps",
        "tie_word_embeddings",
    ]
    names += _LATENT if spec.attention == "mla" else ["num_key_value_heads", "qk_norm", "partial_rotary_factor"]
    names += ["intermediate_size"] if dense else []
    if dense < layers:
        names += [name for name in (*_ROUTER, "scoring_func") if name != "topk_group" or spec.n_group > 1]
    found = {name: getattr(spec, name) for name in names}
    found["num_attention_heads"] = tuple(spec.heads(layer) for layer in range(layers))
    found["first_k_dense_replace"] = dense
    if spec.attention == "gqa":
        found["head_dim"] = spec.resolved_head_dim
    return found


def _family_fields(spec: ModelSpec, family: Family) -> dict[str, Any]:
    experts = {name: getattr(spec, name) for name in _ROUTER} | {"first_k_dense_replace": spec.first_k_dense_replace}
    if spec.dense_layers == spec.num_hidden_layers:
        experts |= DENSE | {"first_k_dense_replace": spec.num_hidden_layers}
    if family == "llama":
        return {"head_dim": spec.resolved_head_dim, "mlp_bias": False}
    if family == "olmoe":
        names = {"num_experts": "n_routed_experts", "intermediate_size": "moe_intermediate_size"}
        names |= {name: name for name in ("num_experts_per_tok", "norm_topk_prob", "router_aux_loss_coef")}
        return {theirs: getattr(spec, ours) for theirs, ours in names.items()} | {"clip_qkv": None}
    # The modules of multi-token prediction are not exported.
    experts |= {"num_nextn_predict_layers": 0}
    if family == "glm4_moe":
        return experts | {"head_dim": spec.resolved_head_dim, "use_qk_norm": spec.qk_norm == "head"}
    latent = {name: getattr(spec, name) for name in _LATENT}
    if family == "deepseek_v2":
        return experts | latent | {"topk_method": "greedy", "scoring_func": "softmax", "mlp_bias": False}
    return experts | latent | {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "rope_interleave": True}


def _rotary(spec: ModelSpec, family: Family) -> dict[str, Any]:
    scaling = None
    if spec.rope_scaling is not None:
        given = {name: value for name in _YARN if (value := getattr(spec.rope_scaling, name)) is not None}
        scaling = {"rope_type": "yarn", **given}
    partial = {"partial_rotary_factor": spec.partial_rotary_factor} if family == "glm4_moe" else {}
    parameters = {**(scaling or {"rope_type": "default"}), "rope_theta": spec.rope_theta, **partial}
    old = {"rope_theta": spec.rope_theta, "rope_scaling": None if scaling is None else parameters, **partial}
    return old | {"rope_parameters": parameters}


def _rotary_fields(known: "_Fields", family: Family) -> dict[str, Any]:
    given = known.get("rope_scaling") or known.get("rope_parameters") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    fields: dict[str, Any] = {"rope_theta": given.get("rope_theta", known.get("rope_theta", 10_000.0))}
    partial = given.get("partial_rotary_factor", known.get("partial_rotary_factor", 1.0))
    if family == "glm4_moe":
        fields["partial_rotary_factor"] = partial
    elif partial != 1.0:
        raise PretrainedMismatch(f"config.json has partial_rotary_factor {partial}, which its class has no use for")
    if kind == "default":
        return fields
    if kind != "yarn":
        raise PretrainedMismatch(f"config.json has rope_type {kind!r}; the decoder knows default and yarn")
    for name, plain in (("attention_factor", None), ("truncate", True)):
        if given.get(name, plain) != plain:
            raise PretrainedMismatch(
                f"config.json has {name} {given[name]} in its rotary settings, which the decoder does not know"
            )
    longest = known.get("max_position_embeddings")
    original = known.get("original_max_position_embeddings") or given.get("original_max_position_embeddings") or longest
    stretched = {name: given[name] for name in _YARN if given.get(name)} | {"original_max_position_embeddings": original}
    if "factor" not in stretched and longest and original:
        stretched["factor"] = longest / original
    return fields | {"rope_scaling": stretched}


def _feed_forward_fields(known: "_Fields", family: Family) -> dict[str, Any]:
    if family == "llama":
        return DENSE | known.take("intermediate_size")
    if family == "olmoe":
        return {
            **known.take("num_experts_per_tok", "norm_topk_prob"),
            "n_routed_experts": known["num_experts"],
            "moe_intermediate_size": known["intermediate_size"],
            "n_shared_experts": 0,
            "scoring_func": "softmax",
            "router_bias_update_rate": 0.0,
        }
    dense = known["first_k_dense_replace"]
    fields = known.take("intermediate_size") if dense else {}
    if dense >= known["num_hidden_layers"]:
        return fields | DENSE
    fields |= {**known.take(*_EXPERTS, "norm_topk_prob"), "first_k_dense_replace": dense}
    if family == "deepseek_v2":
        return fields | {"scoring_func": "softmax", "router_bias_update_rate": 0.0}
    return fields | known.take("n_group", "topk_group")


def _qk_norm(known: "_Fields", family: Family) -> str | None:
    if family == "olmoe":
        return "layer"
    return "head" if family == "glm4_moe" and known["use_qk_norm"] else None


def _refuse_foreign_parts(config: Config, family: Family) -> None:
    """What a class of a known family may have, and the decoder has not."""
    plain: dict[str, tuple[Any, ...]] = {
        "hidden_act": (None, "silu"),
        "attention_bias": (None, False),
        "mlp_bias": (None, False),
        "clip_qkv": (None,),
        "quantization_config": (None,),
        "sliding_window": (None,),
        "moe_layer_freq": (None, 1),
    }
    if family == "deepseek_v2":
        plain |= {"topk_method": (None, "greedy"), "norm_topk_prob": (None, False), "scoring_func": (None, "softmax")}
    if family == "deepseek_v3":
        plain |= {"topk_method": (None, "noaux_tc"), "scoring_func": (None, "sigmoid")}
    for name, values in plain.items():
        if (found := config.get(name)) not in values:
            usual = values[-1]
            raise PretrainedMismatch(
                f"config.json has {name} {found!r}, which the decoder cannot compute"
                + (f"; it knows {usual!r}" if usual is not None else "; it knows models without")
            )


class _Fields(dict[str, Any]):
    """Fields of config.json; a missing one is an error that says so."""

    def __missing__(self, name: str) -> Any:
        raise PretrainedUnreadable(f"config.json does not say {name}")

    def take(self, *names: str) -> dict[str, Any]:
        return {name: self[name] for name in names}

"""Which class of ``transformers`` stands for a spec, what none stands for, and config.json in both of its spellings."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from data.errors import MantaError
from workers.hf.config import facts, from_config, to_config
from workers.hf.convert import to_hf
from workers.hf.errors import NotExportable, PretrainedMismatch, PretrainedUnreadable
from workers.hf.families import CLASSES, family_of, training_only
from workers.hf.rules import rules
from workers.model.count import count_parameters
from workers.model.decoder import Decoder
from workers.model.presets import PRESETS, PresetName
from workers.model.spec import ModelSpec

FAMILIES: dict[PresetName, str] = {
    "tiny": "glm4_moe",
    "1b-a200m": "glm4_moe",
    "olmoe-7b-a1b": "olmoe",
    "1.3b": "llama",
    "7b": "llama",
    "13b": "llama",
    "34b": "llama",
    "67b": "llama",
    "deepseek-v2-lite": "deepseek_v2",
    "deepseek-v3": "deepseek_v3",
    "r1-1200b": "deepseek_v3",
}


def test_every_preset_is_known_here() -> None:
    assert set(FAMILIES) == set(PRESETS)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_class_of_a_preset_has_as_many_parameters(name: PresetName) -> None:
    spec, vocab_size = ModelSpec(preset=name), PRESETS[name].vocab_size
    assert family_of(spec) == FAMILIES[name]
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**to_config(spec, vocab_size)))
    assert type(theirs).__name__ == CLASSES[family_of(spec)]
    ours = count_parameters(spec, vocab_size)
    assert sum(p.numel() for p in theirs.parameters()) == ours.total - ours.by_part["multi_token_prediction"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_rules_know_every_parameter_of_a_preset(name: PresetName) -> None:
    spec = ModelSpec(preset=name)
    with torch.device("meta"):
        state = Decoder(spec, 512, torch.float32).state_dict()
    exported = {key: tuple(value.shape) for key, value in state.items() if not key.startswith("predictors.")}
    assert exported == {rule.name: rule.shape for rule in rules(spec, 512, family_of(spec))}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_preset_survives_its_config(name: PresetName) -> None:
    spec = ModelSpec(preset=name)
    again, vocab_size = from_config(to_config(spec, 512))
    assert (facts(again), vocab_size) == (facts(spec), 512)
    assert again.max_position_embeddings == spec.max_position_embeddings


SOFTMAX = {"scoring_func": "softmax", "norm_topk_prob": False, "router_bias_update_rate": 0.0}
OLMOE = {**SOFTMAX, "n_shared_experts": 0, "qk_norm": "layer"}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"attention_pattern": "sliding"}, "attention_pattern"),
        ({"attention_pattern": "layered", "local_layers": 1}, "attention_pattern"),
        ({"attention_pattern": "hierarchical"}, "attention_pattern"),
        ({"num_attention_heads_by_layer": (6, 4, 6, 6), "head_dim": 32}, "num_attention_heads_by_layer"),
        ({"segment_length": 64, "memory_length": 64}, "segment_length"),
        ({"qk_norm": "layer"}, "qk_norm"),
        ({"qk_norm": "layer", "n_routed_experts": 0}, "qk_norm"),
        ({"n_routed_experts": 1, "num_experts_per_tok": 1}, "n_routed_experts"),
        ({**SOFTMAX, "attention": "mla", "n_group": 2}, "n_group"),
        ({**SOFTMAX, "attention": "mla", "norm_topk_prob": True}, "norm_topk_prob"),
        ({**SOFTMAX, "attention": "mla", "num_attention_heads": 5}, "hidden_size"),
        (SOFTMAX, "qk_norm"),
        ({**OLMOE, "n_shared_experts": 1}, "n_shared_experts"),
        ({**OLMOE, "first_k_dense_replace": 1}, "first_k_dense_replace"),
        ({**OLMOE, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({**OLMOE, "routed_scaling_factor": 2.5}, "routed_scaling_factor"),
        ({**OLMOE, "head_dim": 48}, "head_dim"),
    ],
)
def test_what_no_class_computes_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(NotExportable, match=field) as caught:
        to_config(ModelSpec.model_validate(fields), 512)
    assert (caught.value.code, caught.value.pointer) == ("not_exportable", f"/model/{field}")


def test_layers_that_are_alike_after_all_can_be_exported() -> None:
    assert family_of(ModelSpec(num_attention_heads_by_layer=(4, 4, 4, 4), head_dim=32)) == "glm4_moe"
    assert family_of(ModelSpec(attention_pattern="layered", local_layers=0)) == "glm4_moe"


def test_a_balancing_bias_beside_softmax_scores_is_refused() -> None:
    spec = ModelSpec.model_validate({**OLMOE, "num_hidden_layers": 1})
    with torch.device("meta"):
        model = Decoder(spec, 64, torch.float32)
    state = model.to_empty(device="cpu").state_dict()
    state["blocks.0.feed_forward.bias"].zero_()
    assert not any("bias" in name for name in to_hf(spec, 64, state)[1])
    state["blocks.0.feed_forward.bias"][3] = 0.01
    with pytest.raises(NotExportable, match="balancing bias"):
        to_hf(spec, 64, state)


def test_a_state_of_another_model_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match=r"blocks\.0\.attention\.out"):
        to_hf(ModelSpec(), 64, {"embedding": torch.zeros(64, 192)})


def test_what_only_training_has_is_said() -> None:
    assert training_only(ModelSpec()) == []
    mtp, dropout = training_only(ModelSpec(num_nextn_predict_layers=2, dropout=0.1))
    assert "multi-token prediction (2)" in mtp
    assert "dropout 0.1" in dropout


LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
DEEPSEEK = {
    **LLAMA,
    "model_type": "deepseek_v3",
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
GLM = {**DEEPSEEK, "model_type": "glm4_moe", "num_key_value_heads": 2}


def test_the_older_spelling_of_rotary_settings_says_the_same() -> None:
    scaling = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "mscale": 1.0}
    old, _ = from_config({**DEEPSEEK, "rope_theta": 5e5, "rope_scaling": {**scaling, "mscale_all_dim": 1.0}})
    new, _ = from_config({**DEEPSEEK, "rope_parameters": {**scaling, "mscale_all_dim": 1.0, "rope_theta": 5e5}})
    assert facts(old) == facts(new)
    assert (old.rope_theta, old.rope_scaling and old.rope_scaling.mscale_all_dim) == (5e5, 1.0)


@pytest.mark.parametrize("config", [LLAMA, DEEPSEEK, GLM])
def test_what_a_config_leaves_out_is_what_its_class_assumes(config: dict[str, Any]) -> None:
    spec, _ = from_config(config)
    whole = AutoConfig.for_model(**config).to_dict()
    assert facts(from_config(whole)[0]) == facts(spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3_moe"}, "model_type 'qwen3_moe'.*llama, olmoe, glm4_moe"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\]"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'.*'silu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"sliding_window": 4096}, "sliding_window 4096.*models without"),
        ({"moe_layer_freq": 2}, "moe_layer_freq 2.*knows 1"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "rope_type 'llama3'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8, "truncate": False}}, "truncate False"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8, "attention_factor": 1.5}}, "attention_factor 1.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"topk_method": "group_limited_greedy", "model_type": "deepseek_v2"}, "topk_method"),
        ({"norm_topk_prob": True, "model_type": "deepseek_v2"}, "norm_topk_prob"),
    ],
)
def test_a_model_that_the_decoder_cannot_compute_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PretrainedMismatch, match=message) as caught:
        from_config({**DEEPSEEK, **change})
    assert (caught.value.code, caught.value.pointer) == ("pretrained_mismatch", "/init_from")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_experts_per_tok": 17}, "17 is more than n_routed_experts 16"),
        ({"vocab_size": "many"}, "vocab_size 'many'"),
        ({"vocab_size": None}, "vocab_size None is no number of tokens"),
        ({"vocab_size": -3}, "vocab_size -3"),
        ({"vocab_size": 64.7}, "vocab_size 64.7"),
        ({"vocab_size": float("inf")}, "vocab_size inf"),
        ({"num_hidden_layers": float("inf")}, "num_hidden_layers"),
        ({"tie_word_embeddings": "perhaps"}, "tie_word_embeddings"),
        ({"num_key_value_heads": 0, "model_type": "glm4_moe"}, "num_key_value_heads"),
        ({"first_k_dense_replace": None}, "NoneType"),
        ({"num_hidden_layers": "two"}, "'str'"),
        ({"rope_scaling": [8]}, "'list'"),
        (
            {"num_attention_heads": 3, "num_key_value_heads": 3, "model_type": "glm4_moe"},
            "not divisible by num_attention_heads 3",
        ),
    ],
)
def test_a_config_that_describes_no_model_says_where(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PretrainedUnreadable, match=message):
        from_config({**DEEPSEEK, **change})


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "kv_lora_rank", "n_routed_experts", "q_lora_rank"])
def test_a_size_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(MantaError, match=f"does not say {name}"):
        from_config({key: value for key, value in DEEPSEEK.items() if key != name})

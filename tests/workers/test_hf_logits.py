"""Logits of the decoder and of the classes of ``transformers`` from the same weights, in both directions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from workers.hf.config import facts, to_config
from workers.hf.convert import from_hf, to_hf
from workers.hf.directory import CONFIG, read_config
from workers.hf.files import TensorFiles, write_json, write_tensors
from workers.model.decoder import Decoder
from workers.model.inputs import whole_rows
from workers.model.spec import ModelSpec

VOCAB, POSITIONS = 96, 24
TOLERANCE = 1e-4

GQA: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
LATENT: dict[str, Any] = {
    "attention": "mla",
    "num_attention_heads": 4,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
}
SIGMOID = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "first_k_dense_replace": 1}
GROUPS = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
SOFTMAX = {**SIGMOID, "scoring_func": "softmax", "norm_topk_prob": False}
PLAIN = {"n_shared_experts": 0, "first_k_dense_replace": 0, "qk_norm": "layer"}
DENSE = {"n_routed_experts": 0, "n_shared_experts": 0}


def yarn(**more: float) -> dict[str, Any]:
    """The training context is short, so that most frequencies are between kept and stretched."""
    return {"rope_scaling": {"factor": 8, "original_max_position_embeddings": 16, "beta_fast": 4, **more}}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sigmoid experts": ("glm4_moe", {**GQA, **SIGMOID}),
    "every trick of GLM": (
        "glm4_moe",
        {**GQA, **SIGMOID, **GROUPS, "qk_norm": "head", "partial_rotary_factor": 0.5, "head_dim": 24, "n_shared_experts": 2},
    ),
    "raw sigmoid weights": ("glm4_moe", {**GQA, **SIGMOID, "norm_topk_prob": False, "routed_scaling_factor": 1.7}),
    "no shared expert": ("glm4_moe", {**GQA, **SIGMOID, "n_shared_experts": 0, "first_k_dense_replace": 0}),
    "partial rotation, stretched": ("glm4_moe", {**GQA, **SIGMOID, "partial_rotary_factor": 0.5, **yarn()}),
    "DeepSeek-V3": ("deepseek_v3", {**LATENT, **SIGMOID, **GROUPS, "q_lora_rank": 20, **yarn(mscale=1.0, mscale_all_dim=1.0)}),
    "latent keys only, wide epsilon": ("deepseek_v3", {**LATENT, **SIGMOID, "rms_norm_eps": 1e-3}),
    "unequal mscale": ("deepseek_v3", {**LATENT, **SIGMOID, **yarn(mscale=0.8, mscale_all_dim=1.2)}),
    "mscale_all_dim alone": ("deepseek_v3", {**LATENT, **SIGMOID, **yarn(mscale_all_dim=1.2), "tie_word_embeddings": True}),
    "DeepSeek-V2-Lite": (
        "deepseek_v2",
        {**LATENT, **SOFTMAX, **yarn(mscale=0.707, mscale_all_dim=0.707), "n_shared_experts": 2},
    ),
    "DeepSeek-V2": ("deepseek_v2", {**LATENT, **SOFTMAX, "q_lora_rank": 20, "routed_scaling_factor": 1.5}),
    "OLMoE": ("olmoe", {**GQA, **SOFTMAX, **PLAIN, "rms_norm_eps": 1e-5}),
    "OLMoE, normalised": ("olmoe", {**GQA, **SOFTMAX, **PLAIN, "norm_topk_prob": True, "tie_word_embeddings": True}),
    "Llama": ("llama", {**GQA, **DENSE, "rope_theta": 500_000.0, "head_dim": 24}),
    "Llama, tied and stretched": ("llama", {**GQA, **DENSE, "tie_word_embeddings": True, **yarn()}),
    "dense with normed heads": ("glm4_moe", {**GQA, **DENSE, "qk_norm": "head", "partial_rotary_factor": 0.5}),
    "dense and latent": ("deepseek_v3", {**LATENT, **DENSE, "q_lora_rank": 20}),
}


def small(fields: dict[str, Any]) -> ModelSpec:
    return ModelSpec(hidden_size=64, num_hidden_layers=2, intermediate_size=48, max_position_embeddings=512, **fields)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, ModelSpec]:
    family, fields = CASES[request.param]
    return family, small(fields)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_decoder(spec: ModelSpec) -> Decoder:
    """Large weights, norms that are not one and a balancing bias that decides: no two computations agree by accident."""
    with torch.device("meta"):
        model = Decoder(spec, VOCAB, torch.float32)
    model.to_empty(device="cpu")
    draw = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith(".bias"):
            tensor.zero_() if spec.scoring_func == "softmax" else tensor.normal_(0.0, 0.1, generator=draw)
        elif name.endswith("norm.weight"):
            tensor.uniform_(0.5, 1.5, generator=draw)
        else:
            tensor.normal_(0.0, 0.15, generator=draw)
    return model.eval()


def tokens() -> torch.Tensor:
    return torch.randint(VOCAB, (2, POSITIONS), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def our_logits(model: Decoder) -> torch.Tensor:
    logits = model(whole_rows(model.spec, tokens(), torch.device("cpu"), torch.float32), logits=True)
    assert isinstance(logits, torch.Tensor)
    return logits


@torch.no_grad()
def their_logits(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(tokens()).logits
    return logits


def loaded(directory: Path) -> Any:
    """As a user would, and nothing missing or left over."""
    model, told = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(told.values()), told
    return model.eval()


def test_a_class_of_transformers_computes_our_logits(case: tuple[str, ModelSpec], tmp_path: Path) -> None:
    family, spec = case
    ours = random_decoder(spec)
    config, tensors = to_hf(spec, VOCAB, ours.state_dict())
    assert config["model_type"] == family
    write_json(tmp_path / CONFIG, config)
    write_tensors(tmp_path, tensors.items(), {name: x.shape for name, x in tensors.items()}, torch.float32)
    expected = our_logits(ours)
    assert expected.std() > 0.3
    assert (their_logits(loaded(tmp_path)) - expected).abs().max() < TOLERANCE

    spec_again, vocab_size, state = from_hf(config, tensors)
    assert (facts(spec_again), vocab_size) == (facts(spec), VOCAB)
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())


def test_we_compute_the_logits_of_a_class_of_transformers(case: tuple[str, ModelSpec], tmp_path: Path) -> None:
    _, spec = case
    theirs = random_hf(spec)
    theirs.save_pretrained(tmp_path)
    config, files = read_config(tmp_path), TensorFiles(tmp_path)
    spec_there, vocab_size, state = from_hf(config, files)
    assert (facts(spec_there), vocab_size) == (facts(spec), VOCAB)
    with torch.device("meta"):
        ours = Decoder(spec_there, vocab_size, torch.float32)
    ours.to_empty(device="cpu").load_state_dict(state)
    expected = their_logits(theirs)
    assert expected.std() > 0.3
    assert (our_logits(ours.eval()) - expected).abs().max() < TOLERANCE

    _, again = to_hf(spec_there, vocab_size, state)
    assert again.keys() == set(files)
    assert all(torch.equal(files[name], tensor) for name, tensor in again.items())


def random_hf(spec: ModelSpec) -> Any:
    """A model that ``transformers`` made and filled itself, with weights large enough to tell computations apart."""
    torch.manual_seed(3)
    wide = spec.model_copy(update={"initializer_range": 0.15})
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**to_config(wide, VOCAB)), dtype=torch.float32)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0.0, 0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.uniform_(0.5, 1.5)
    return model.eval()

"""Parameters and operations, counted from the spec, are those of the real model."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.workers.synthetic import two_documents_a_row
from workers.model import grouped  # noqa: F401 - registers the operator
from workers.model.count import count_parameters, flops_per_token, logical_elements
from workers.model.decoder import Decoder
from workers.model.inputs import packed_rows
from workers.model.spec import ModelSpec
from workers.muon import logical_matrices
from workers.spec import TrainSpec

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "moe_intermediate_size": 24}
MLA = {"attention": "mla", "kv_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12}
MODELS: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "heads by layer": {"num_attention_heads_by_layer": (4, 8, 2), "head_dim": 6},
    "one key head": {"num_key_value_heads": 1},
    "norm of heads": {"qk_norm": "head"},
    "norm of layers": {"qk_norm": "layer"},
    "latent attention": MLA,
    "latent queries": MLA | {"q_lora_rank": 20},
    "dense": {"n_routed_experts": 0},
    "dense first": {"first_k_dense_replace": 2, "intermediate_size": 40},
    "all dense first": {"first_k_dense_replace": 3},
    "no shared expert": {"n_shared_experts": 0, "n_routed_experts": 16, "num_experts_per_tok": 5},
    "two shared experts": {"n_shared_experts": 2},
    "tied": {"tie_word_embeddings": True},
    "further tokens": {"num_nextn_predict_layers": 2},
    "further tokens, dense": {"num_nextn_predict_layers": 1, "n_routed_experts": 0},
    "further tokens, latent, tied": MLA | {"num_nextn_predict_layers": 1, "tie_word_embeddings": True, "q_lora_rank": 8},
    "windows": {"attention_pattern": "layered", "sliding_window": 8},
}


def of(model: dict[str, Any]) -> ModelSpec:
    return ModelSpec.model_validate(SMALL | model)


def on_meta(model: ModelSpec, vocab_size: int) -> Decoder:
    with torch.device("meta"):
        return Decoder(model, vocab_size, torch.float32)


def require_equal_counts(model: ModelSpec, vocab_size: int) -> None:
    real, counted = on_meta(model, vocab_size), count_parameters(model, vocab_size)
    assert counted.total == sum(p.numel() for p in real.parameters())
    assert counted.total == sum(counted.by_part.values())
    routed = [block.feed_forward for block in real.blocks if hasattr(block.feed_forward, "router")]
    idle = sum(moe.gate_up.numel() + moe.down.numel() for moe in routed)
    idle = idle * (model.n_routed_experts - model.num_experts_per_tok) // max(model.n_routed_experts, 1)
    assert counted.active == counted.total - idle - sum(p.numel() for p in real.predictors.parameters())
    named = dict(real.named_parameters())
    assert logical_elements(model) == sum(named[name].numel() for name in logical_matrices(real))


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_real_model(name: str) -> None:
    require_equal_counts(of(MODELS[name]), 50)


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    layers, groups = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    heads = groups * draw(st.integers(1, 3))
    experts = draw(st.integers(1, 9))
    return ModelSpec(
        hidden_size=draw(st.integers(8, 40)),
        num_hidden_layers=layers,
        attention=draw(st.sampled_from(["gqa", "mla"])),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=2 * draw(st.integers(1, 5)),
        q_lora_rank=draw(st.none() | st.integers(1, 9)),
        kv_lora_rank=draw(st.integers(1, 9)),
        qk_nope_head_dim=draw(st.integers(1, 9)),
        qk_rope_head_dim=2 * draw(st.integers(1, 3)),
        v_head_dim=draw(st.integers(1, 9)),
        intermediate_size=draw(st.integers(8, 20)),
        first_k_dense_replace=draw(st.integers(0, layers)),
        n_routed_experts=experts,
        num_experts_per_tok=draw(st.integers(1, experts)),
        n_shared_experts=draw(st.integers(0, 2)),
        moe_intermediate_size=draw(st.integers(8, 20)),
        num_nextn_predict_layers=draw(st.integers(0, 2)),
        tie_word_embeddings=draw(st.booleans()),
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(models(), st.integers(10, 60))
def test_parameters_of_any_model(model: ModelSpec, vocab_size: int) -> None:
    require_equal_counts(model, vocab_size)


def product_flops(x: tuple[int, int], weight: tuple[int, int, int], *_: Any, **__: Any) -> int:
    return 2 * x[0] * weight[1] * weight[2]


def gradient_flops(grad: Any, x: Any, weight: tuple[int, int, int], *_: Any, **__: Any) -> int:
    return 2 * product_flops(x, weight)


def in_place_flops(total: Any, a: tuple[int, int], b: tuple[int, int], *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


COUNTED = {
    torch.ops.manta.grouped_mm: product_flops,
    torch.ops.manta.grouped_mm_backward: gradient_flops,
    torch.ops.aten.addmm_: in_place_flops,
}


def counted_flops(model: ModelSpec, vocab_size: int, length: int) -> int:
    """Of forward and backward over one row of one document, as torch sees its kernels: attention's it does not."""
    spec = TrainSpec.model_validate({"data_pipeline": {"sequence_length": length}, "training": {"micro_batch_size": 1}})
    torch.manual_seed(0)
    decoder = Decoder(model, vocab_size, torch.float32)
    for p in decoder.parameters():
        torch.nn.init.normal_(p, std=0.02)
    for layer in decoder.experts:
        layer.bias.zero_()
    batch = two_documents_a_row(spec)
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        decoder(packed_rows(model, batch, torch.device("cpu"), torch.float32)).objective.backward()
    kernels = counter.get_flop_counts()["Global"]
    seen = {str(name) for name in kernels}
    assert not any("attention" in name for name in seen), seen
    return counter.get_total_flops()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "windows"])
def test_matrix_products_are_six_operations_a_parameter(name: str) -> None:
    model, length = of(MODELS[name] | {"v_head_dim": 12}), 16
    without_attention = flops_per_token(model, 50, 0)
    assert counted_flops(model, 50, length) == length * without_attention


def attention(model: dict[str, Any], length: int) -> float:
    spec = of(model)
    return flops_per_token(spec, 50, length) - flops_per_token(spec, 50, 0)


def seen_keys(visible_TT: torch.Tensor) -> float:
    """Keys that a query sees on average."""
    return float(visible_TT.float().sum() / len(visible_TT))


def test_causal_attention_sees_half_the_row() -> None:
    # Scores and sums, 2 operations each, forward and twice backward, of 3 layers with 4 heads of 8.
    assert attention({}, 64) == 2 * 2 * 3 * 3 * 4 * 8 * 32
    assert attention(MLA, 64) == 2 * 3 * 3 * 4 * (12 + 12) * 32


@pytest.mark.parametrize("length", [64, 256])
def test_windows_see_no_further(length: int) -> None:
    distance_TT = torch.arange(length)[:, None] - torch.arange(length)
    keys = seen_keys((distance_TT >= 0) & (distance_TT < 16))
    expected = 2 * 2 * 3 * 3 * 4 * 8 * keys
    assert attention({"attention_pattern": "sliding", "sliding_window": 16}, length) == pytest.approx(expected, rel=0.05)
    layered = attention({"attention_pattern": "layered", "sliding_window": 16, "local_layers": 2}, length)
    assert layered == pytest.approx(expected * 2 / 3 + attention({}, length) / 3, rel=0.05)


def test_segments_see_themselves_and_their_memory() -> None:
    position = torch.arange(128)
    first = position // 32 * 32
    distance_TT = position[:, None] - position
    visible_TT = (distance_TT >= 0) & (position >= (first - 16)[:, None])
    expected = 2 * 2 * 3 * 3 * 4 * 8 * seen_keys(visible_TT)
    assert attention({"segment_length": 32, "memory_length": 16}, 128) == pytest.approx(expected, rel=0.05)


def test_hierarchical_attention_grows_by_the_logarithm() -> None:
    model = {"attention_pattern": "hierarchical", "hierarchical_block": 64, "hierarchical_slots": 16}
    growth = 4 * attention(model, 32_768) / attention(model, 8192)
    assert 4 < growth < 4.7
    assert attention(model, 64) == attention({}, 64)

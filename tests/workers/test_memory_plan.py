"""What a step's tensors take at their peak is what the plan said: within a tenth, whatever the model and the recipe."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.workers.memory import peak_tensor_bytes
from tests.workers.synthetic import two_documents_a_row
from workers.activations import kept_bytes
from workers.engine import Engine
from workers.fit import needed
from workers.memory import Memory, activations
from workers.mesh import Membership
from workers.model.footprint import Mode
from workers.spec import TrainSpec

ALONE = Membership(generation=0, rank=0, world_size=1, local_rank=0)
SMALL = {
    "data_pipeline": {"sequence_length": 128},
    "tokenizer": {"vocab_size": 512},
    "model": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "moe_intermediate_size": 80},
    "training": {"global_batch_size": 4, "micro_batch_size": 4},
}
MLA = {"attention": "mla", "kv_lora_rank": 48, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 32}
NARROW = MLA | {"v_head_dim": 20}
HIERARCHICAL = {"attention_pattern": "hierarchical", "hierarchical_block": 16, "hierarchical_slots": 4}
ONE_ROW = {"micro_batch_size": 1, "global_batch_size": 1}
# Where weights, scores and logits have other shares.
LARGER = {
    "data_pipeline": {"sequence_length": 512},
    "tokenizer": {"vocab_size": 4096},
    "model": {
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 256,
    },
}


def of(model: dict[str, Any] | None = None, larger: bool = False, **training: Any) -> TrainSpec:
    parts = SMALL | LARGER if larger else SMALL
    recipe = parts["training"] | training
    return TrainSpec.model_validate({**parts, "model": parts["model"] | (model or {}), "training": recipe})


BLOCKS: dict[str, TrainSpec] = {
    "quickstart": of(),
    "bf16": of(precision="bf16"),
    "fp16": of(precision="fp16"),
    "dense": of({"n_routed_experts": 0}),
    "dense first, bf16": of({"first_k_dense_replace": 1}, precision="bf16"),
    "norm of heads": of({"qk_norm": "head"}),
    "norm of layers, bf16": of({"qk_norm": "layer"}, precision="bf16"),
    "latent": of(MLA),
    "latent queries, bf16": of(MLA | {"q_lora_rank": 56}, precision="bf16"),
    "latent, narrow values": of(NARROW),
    "segments, norm of heads": of({"segment_length": 32, "memory_length": 16, "qk_norm": "head"}),
    "segments, norm of layers, bf16": of({"segment_length": 64, "memory_length": 16, "qk_norm": "layer"}, precision="bf16"),
    "latent, segments": of(MLA | {"segment_length": 32, "memory_length": 32}),
    "latent, windows, bf16": of(NARROW | {"attention_pattern": "sliding", "sliding_window": 16}, precision="bf16"),
    "latent, narrow values, bf16": of(NARROW, precision="bf16"),
    "windows": of({"attention_pattern": "layered", "sliding_window": 16}),
    "segments": of({"segment_length": 32, "memory_length": 16}),
    "hierarchical": of(HIERARCHICAL),
    "dropout, bf16": of({"dropout": 0.1}, precision="bf16"),
    "many experts, losses": of(
        {"n_routed_experts": 16, "num_experts_per_tok": 4, "scoring_func": "softmax", "router_z_loss_coef": 0.1}
    ),
}
STEPS: dict[str, TrainSpec] = BLOCKS | {
    "full": of(activation_checkpointing="full"),
    "full, bf16": of(activation_checkpointing="full", precision="bf16"),
    "selective": of(activation_checkpointing="selective"),
    "selective, bf16": of(activation_checkpointing="selective", precision="bf16"),
    "budget": of(activation_bytes=9_000_000),
    "further tokens": of({"num_nextn_predict_layers": 1}),
    "further tokens, full, bf16": of({"num_nextn_predict_layers": 2}, activation_checkpointing="full", precision="bf16"),
    "tied": of({"tie_word_embeddings": True}),
    "smoothed": of(label_smoothing=0.1, focal_gamma=1.0),
    "accumulated": of(micro_batch_size=2),
    "accumulated, bf16": of(micro_batch_size=2, precision="bf16"),
    "state": of(**ONE_ROW),
    "rounded moments": of(moments_dtype="bf16", **ONE_ROW),
    "muon": of(optimizer="muon", **ONE_ROW),
    "larger": of(larger=True),
    "larger, bf16, full": of(larger=True, precision="bf16", activation_checkpointing="full"),
}

# Few tokens: what counts is weights, their gradients and copies.
HEAVY = {"hidden_size": 256, "intermediate_size": 1024, "first_k_dense_replace": 2, "moe_intermediate_size": 256}
STEPS |= {
    f"weights, {precision}, {rows} micro-batches": of(HEAVY, micro_batch_size=1, global_batch_size=rows, precision=precision)
    for precision in ("fp32", "bf16")
    for rows in (1, 2)
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def measured(spec: TrainSpec) -> int:
    """The peak of one optimizer step: parameters, gradients, moments and all that is made meanwhile."""
    engine = Engine.build(spec, ALONE, spec.tokenizer.vocab_size)
    moments = [tensor for state in engine.optimizer.state.values() for tensor in state.values()]
    batch = two_documents_a_row(spec, spec.tokenizer.vocab_size)
    count = spec.training.global_batch_size // spec.training.micro_batch_size
    held = [*engine.model.state_dict().values(), *moments]
    return peak_tensor_bytes(lambda: engine.train_step([batch] * count), held)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_peaks_where_the_plan_said(name: str) -> None:
    spec = STEPS[name]
    assert needed(spec).total == pytest.approx(measured(spec), rel=0.1)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_keep_what_the_plan_said_in_every_mode(name: str) -> None:
    spec = BLOCKS[name]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[spec.training.precision]
    kept = kept_bytes(spec, torch.device("cpu"), dtype)
    modes: tuple[Mode, ...] = ("none", "selective", "full")
    for mode in modes:
        assert activations(spec)[mode] == pytest.approx(sum(block[mode] for block in kept), rel=0.02), mode


def test_the_plan_knows_the_engine_s_constants() -> None:
    from workers import engine, memory, muon, optim
    from workers.model import loss

    assert memory.KEEP_GATHERED_BYTES == engine.KEEP_GATHERED_BYTES
    assert loss.chunk_on(torch.device("cpu")) == memory.LOSS_CHUNK
    assert loss.chunk_on(torch.device("cuda")) == memory.LOSS_CHUNK_ON_GPU
    assert memory.UPDATE_CHUNK == optim.CHUNK_ELEMENTS
    assert memory.ORTHOGONAL_BATCH == muon.BATCH_ELEMENTS


def shared(workers: int, **parts: Any) -> Memory:
    spec = {"parallel_strategy": {"data_parallel": workers}, "training": {"micro_batch_size": 2, "global_batch_size": 8}}
    return needed(TrainSpec.model_validate(spec | parts))


def test_state_is_shared_out_among_the_workers() -> None:
    alone, four = shared(1), shared(4)
    assert four.optimizer == pytest.approx(alone.optimizer / 4, abs=8)
    assert four.parameters == pytest.approx(alone.parameters / 4, abs=8)
    assert (alone.gathered, four.gathered) == (0, alone.parameters)
    assert four.total == sum(value for part, value in four.model_dump(exclude={"peak"}).items() if part != "total")


def test_a_large_model_is_gathered_layer_by_layer() -> None:
    model = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32}
    four = shared(4, model=model)
    assert 0 < four.gathered < 4 * four.parameters / 4


def test_smaller_numbers_take_less() -> None:
    whole = needed(of())
    assert needed(of(moments_dtype="bf16")).optimizer == whole.optimizer // 2
    assert needed(of(optimizer="muon")).optimizer < 0.6 * whole.optimizer
    assert needed(of(precision="bf16")).activations < 0.8 * whole.activations
    on_gpus = TrainSpec.model_validate({**SMALL, "gpu_config": {"gpus_per_node": 1}})
    assert needed(on_gpus).activations < whole.activations

"""The plan: exact where it says so, and a problem for whatever this version cannot run."""

import subprocess
import sys
from typing import Any

import pytest

from workers.model.spec import ModelSpec
from workers.plan import count_parameters, describe, plan
from workers.spec import TrainSpec


def spec(**parts: Any) -> TrainSpec:
    return TrainSpec.model_validate(parts)


def problems(**parts: Any) -> list[tuple[str, str]]:
    return [(problem.code, problem.pointer) for problem in plan(spec(**parts)).problems]


MODELS = [
    {},
    {"tie_word_embeddings": False},
    {"first_k_dense_replace": 1, "intermediate_size": 384},
    {"n_shared_experts": 0, "n_routed_experts": 4, "num_experts_per_tok": 3},
    {"n_shared_experts": 2, "head_dim": 16, "num_key_value_heads": 3},
]


@pytest.mark.parametrize("model", MODELS)
def test_parameters_are_those_of_the_real_model(model: dict[str, Any]) -> None:
    import torch

    from workers.model.decoder import Decoder

    described = ModelSpec.model_validate(model)
    with torch.device("meta"):
        real = Decoder(described, 512, torch.float32)
    counted = count_parameters(described, 512)
    assert counted.total == sum(p.numel() for p in real.parameters())
    routed = sum(moe.gate_up.numel() + moe.down.numel() for moe in real.experts)
    assert counted.total - counted.active == routed - routed * described.num_experts_per_tok // described.n_routed_experts


def test_gathering_follows_the_engine() -> None:
    from workers import engine
    from workers import plan as planner

    assert planner.KEEP_GATHERED_BYTES == engine.KEEP_GATHERED_BYTES


def test_the_defaults_can_run() -> None:
    made = plan(TrainSpec())
    assert made.problems == []
    assert made.notes == []
    assert (made.world_size, made.micro_batches, made.micro_batches_per_worker) == (1, 4, 4)
    assert made.tokens == made.steps * made.tokens_per_step == 100 * 32 * 256
    assert made.flops == made.flops_per_token * made.tokens


def test_tokens_become_whole_steps() -> None:
    made = plan(spec(training={"tokens": 650_000}))
    assert made.steps == 80
    assert made.tokens >= 650_000


def test_state_is_shared_out_among_the_workers() -> None:
    alone, shared = plan(TrainSpec()).memory, plan(spec(parallel_strategy={"data_parallel": 4})).memory
    total = plan(TrainSpec()).parameters.total
    assert (alone.parameters, alone.gradients, alone.optimizer) == (4 * total, 4 * total, 8 * total)
    assert shared.optimizer == pytest.approx(alone.optimizer / 4, abs=8)
    assert alone.gathered == 0
    assert shared.gathered == 4 * total
    assert shared.total == sum(value for part, value in shared.model_dump().items() if part != "total")


def test_half_precision_halves_what_is_gathered() -> None:
    workers = {"data_parallel": 4}
    whole = plan(spec(parallel_strategy=workers)).memory.gathered
    assert plan(spec(parallel_strategy=workers, training={"precision": "bf16"})).memory.gathered == whole // 2


def test_a_large_model_is_gathered_layer_by_layer() -> None:
    model = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32}
    made = plan(spec(model=model, parallel_strategy={"data_parallel": 4}))
    assert 0 < made.memory.gathered < made.parameters.total


@pytest.mark.parametrize("name", ["tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel"])
def test_other_parallelism_is_not_there_yet(name: str) -> None:
    batch = {"global_batch_size": 64}
    assert problems(parallel_strategy={name: 2}, training=batch) == [("not_supported_yet", f"/parallel_strategy/{name}")]
    assert problems(parallel_strategy={name: 1}) == []


def test_the_block_that_users_know_is_refused_field_by_field() -> None:
    strategy = {
        "tensor_parallel": 8,
        "pipeline_parallel": 4,
        "sequence_parallel": True,
        "expert_parallel": 2,
        "gradient_accumulation": 32,
    }
    pointers = [pointer for _, pointer in problems(parallel_strategy=strategy)]
    assert "/parallel_strategy/tensor_parallel" in pointers
    assert "/parallel_strategy/sequence_parallel" in pointers


def test_a_cluster_that_is_not_there_is_no_problem() -> None:
    cluster = {"nodes": 128, "gpus_per_node": 8}
    assert problems(gpu_config=cluster, training={"global_batch_size": 8192}) == []
    assert plan(spec(gpu_config=cluster, training={"global_batch_size": 8192})).world_size == 1024


def test_every_worker_needs_a_micro_batch() -> None:
    assert problems(parallel_strategy={"data_parallel": 8}) == [("batch_too_small", "/training/global_batch_size")]


def test_stated_accumulation_must_follow_from_the_batch() -> None:
    assert problems(parallel_strategy={"data_parallel": 2, "gradient_accumulation": 2}) == []
    assert problems(parallel_strategy={"data_parallel": 2, "gradient_accumulation": 3}) == [
        ("batch_mismatch", "/parallel_strategy/gradient_accumulation")
    ]


def test_uneven_shares_are_noted() -> None:
    assert plan(spec(parallel_strategy={"data_parallel": 3})).notes == [
        "2 of 6 micro-batch places of a step are empty: workers wait there"
    ]


def test_sizes_that_the_experts_products_cannot_take() -> None:
    model = {"hidden_size": 100, "num_attention_heads": 2, "moe_intermediate_size": 36}
    assert problems(model=model) == []
    assert problems(model=model, training={"precision": "bf16"}) == [
        ("misaligned", "/model/hidden_size"),
        ("misaligned", "/model/moe_intermediate_size"),
    ]
    assert problems(model=model | {"first_k_dense_replace": 4}, training={"precision": "bf16"}) == []


def test_it_is_json() -> None:
    assert describe(TrainSpec())["parameters"]["total"] == plan(TrainSpec()).parameters.total


def test_planning_loads_neither_torch_nor_ray() -> None:
    code = "import sys, workers.plan; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

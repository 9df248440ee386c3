"""The plan: exact where it says so, and a problem for whatever this version cannot run."""

import subprocess
import sys
from typing import Any

import pytest

from workers.plan import describe, plan
from workers.spec import TrainSpec


def spec(**parts: Any) -> TrainSpec:
    return TrainSpec.model_validate(parts)


def problems(**parts: Any) -> list[tuple[str, str]]:
    return [(problem.code, problem.pointer) for problem in plan(spec(**parts)).problems]


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


def test_a_curriculum_counts_its_own_tokens_and_operations() -> None:
    curriculum = [{"sequence_length": 64, "fraction": 0.5}, {"sequence_length": 256, "fraction": 0.5}]
    whole, short_first = plan(TrainSpec()), plan(spec(data_pipeline={"curriculum": curriculum}))
    assert (short_first.tokens, short_first.tokens_per_step) == (whole.tokens, whole.tokens_per_step)
    # Half of the tokens see a quarter of the keys.
    assert short_first.flops < whole.flops
    assert short_first.flops_per_token == whole.flops_per_token
    warmed = plan(spec(training={"batch_warmup": {"start": 8, "fraction": 0.5}}))
    assert warmed.tokens < whole.tokens


def test_chains_are_counted_by_the_row() -> None:
    made = plan(spec(data_pipeline={"sequence_length": 64, "chain_segments": 4}))
    assert made.tokens_per_step == 32 * 256


def test_activations_by_mode() -> None:
    kept = plan(TrainSpec()).activations
    assert kept["none"] > kept["selective"] > kept["full"] == 4 * 4 * 192 * 8 * 256


def test_a_budget_that_no_mode_keeps() -> None:
    assert problems(training={"activation_bytes": 10}) == [("recompute_budget_too_small", "/training/activation_bytes")]


def test_presets_say_what_they_are_and_notes_where_they_differ() -> None:
    made = plan(spec(model={"preset": "tiny"}, tokenizer={"vocab_size": 2048}))
    assert made.preset is not None
    assert (made.preset.name, made.preset.source) == ("tiny", "examples/quickstart.yaml")
    assert made.notes == []
    differs = plan(spec(model={"preset": "tiny"}))
    assert differs.notes == ["tokenizer.vocab_size is 4096; the published model of preset tiny has 2048"]


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
    assert problems(model=model, training={"precision": "fp16"})[0] == ("misaligned", "/model/hidden_size")
    assert problems(model=model | {"first_k_dense_replace": 4}, training={"precision": "bf16"}) == []
    assert problems(model=model | {"n_routed_experts": 0}, training={"precision": "bf16"}) == []


def test_it_is_json() -> None:
    assert describe(TrainSpec())["parameters"]["total"] == plan(TrainSpec()).parameters.total


def test_planning_loads_neither_torch_nor_ray() -> None:
    code = "import sys, workers.plan; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

"""The training spec: every default trains, the blocks that users know validate verbatim, sizes that do not fit are named."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from workers.spec import ModelSpec, TrainingSpec, TrainSpec

KNOWN_BLOCKS = {
    "parallel_strategy": {
        "tensor_parallel": 8,
        "pipeline_parallel": 4,
        "sequence_parallel": True,
        "expert_parallel": 2,
        "gradient_accumulation": 32,
    },
    "gpu_config": {
        "nodes": 128,
        "gpus_per_node": 8,
        "interconnect": "NVLink3 + 400Gbps RDMA",
        "cpu_memory": "2TB/node",
        "gpu_memory": "80GB/H100",
    },
}


def test_an_empty_spec_is_valid() -> None:
    assert TrainSpec().total_steps > 0


def test_the_blocks_that_users_know_validate_verbatim() -> None:
    spec = TrainSpec.model_validate(KNOWN_BLOCKS)
    assert spec.world_size == 1024
    assert spec.model_dump(exclude_unset=True)["parallel_strategy"] == KNOWN_BLOCKS["parallel_strategy"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 100, "num_attention_heads": 6}, "hidden_size 100 is not divisible by num_attention_heads 6"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "not divisible by num_key_value_heads 4"),
        ({"n_routed_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok 3 is more than n_routed_experts 2"),
        ({"first_k_dense_replace": 9, "num_hidden_layers": 2}, "first_k_dense_replace 9 is more than"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
    ],
)
def test_sizes_that_do_not_fit_are_named_with_their_values(change: dict[str, int], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelSpec.model_validate(change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"global_batch_size": 10, "micro_batch_size": 4}, "global_batch_size 10 is not divisible by micro_batch_size 4"),
        ({"tokens": 1000, "steps": 10}, "tokens and steps are both given"),
    ],
)
def test_batches_and_lengths_that_contradict_each_other_are_errors(change: dict[str, int], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TrainingSpec.model_validate(change)


@pytest.mark.parametrize(
    ("tokens", "steps", "expected"),
    [(None, 7, 7), (1, None, 1), (8 * 128, None, 1), (8 * 128 + 1, None, 2), (10 * 8 * 128, None, 10)],
)
def test_tokens_are_rounded_up_to_whole_steps(tokens: int | None, steps: int | None, expected: int) -> None:
    recipe = TrainingSpec(tokens=tokens, steps=steps, global_batch_size=8, micro_batch_size=4)
    assert recipe.total_steps(sequence_length=128) == expected


@pytest.mark.parametrize(
    "training",
    [{}, {"tokens": 5000}, {"steps": 3}, {"warmup_steps": 0}, {"warmup_fraction": 0.1, "final_betas": [0.85, 0.99]}],
)
def test_a_spec_with_its_defaults_filled_in_is_the_same_spec(training: dict[str, object]) -> None:
    spec = TrainSpec.model_validate({"training": training})
    assert TrainSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_specs_import_neither_torch_nor_ray() -> None:
    code = "import sys, service.spec, workers.attempt; sys.exit(bool({'torch', 'ray', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

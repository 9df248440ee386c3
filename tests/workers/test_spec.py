"""The training spec: every default trains, the blocks that users know validate verbatim, sizes that do not fit are named."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from service.validation import SpecInvalid, parse_spec
from workers.model.spec import ModelSpec
from workers.spec import TrainingSpec, TrainSpec

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


MISFITS = [
    # Heads
    (
        {"hidden_size": 100},
        "hidden_size",
        "hidden_size 100 is not divisible by num_attention_heads 6; .* is 96, or set head_dim",
    ),
    ({"num_attention_heads": 5}, "num_attention_heads", "hidden_size 192 is not divisible by num_attention_heads 5; .* 190"),
    ({"num_key_value_heads": 4}, "num_key_value_heads", "num_attention_heads 6 is not .* num_key_value_heads 4, .* 2 does"),
    (
        {"num_hidden_layers": 2, "num_attention_heads_by_layer": [6, 5]},
        "num_attention_heads_by_layer",
        "num_attention_heads_by_layer 5 is not divisible by num_key_value_heads 2",
    ),
    ({"num_attention_heads_by_layer": [6]}, "num_attention_heads_by_layer", "has 1 entries for 4 layers; give one for each"),
    ({"attention": "mla", "qk_norm": "head"}, "qk_norm", "qk_norm goes with attention gqa"),
    # Rope
    ({"head_dim": 7}, "head_dim", "head_dim 7 .* rotates 7 channels .* pairs: .* 8"),
    ({"hidden_size": 30}, "hidden_size", "head_dim 5 .* rotates 5 channels .* pairs: .* 4"),
    ({"partial_rotary_factor": 0.1}, "partial_rotary_factor", "head_dim 32 with partial_rotary_factor 0.1 rotates 3 channels"),
    ({"partial_rotary_factor": 0.01}, "partial_rotary_factor", "rotates 0 channels .* pairs: .* 2"),
    ({"attention": "mla", "qk_rope_head_dim": 5}, "qk_rope_head_dim", "qk_rope_head_dim 5 rotates 5 channels .* pairs: .* 4"),
    # Experts
    ({"n_routed_experts": 1}, "n_routed_experts", "num_experts_per_tok 2 is more than n_routed_experts 1"),
    ({"num_experts_per_tok": 9}, "num_experts_per_tok", "num_experts_per_tok 9 is more than n_routed_experts 8"),
    ({"first_k_dense_replace": 9}, "first_k_dense_replace", "first_k_dense_replace 9 is more than num_hidden_layers 4"),
    # Groups of experts
    ({"n_group": 3}, "n_group", "n_routed_experts 8 is not divisible by n_group 3, which must divide it; 1 does"),
    ({"n_group": 2, "topk_group": 3}, "topk_group", "topk_group 3 is more than n_group 2"),
    ({"n_group": 8, "topk_group": 4}, "n_group", "n_group 8 leaves one expert a group; .* at most 4"),
    (
        {"n_group": 4, "topk_group": 1, "num_experts_per_tok": 5},
        "num_experts_per_tok",
        "num_experts_per_tok 5 is more than the 2 experts in topk_group 1 groups; raise topk_group to 3",
    ),
    # Patterns
    ({"attention_pattern": "layered", "local_layers": 5}, "local_layers", "local_layers 5 is more than num_hidden_layers 4"),
    (
        {"attention_pattern": "hierarchical", "hierarchical_slots": 24},
        "hierarchical_slots",
        "_block 64 is not .*_slots 24, .* 8 does",
    ),
    ({"memory_length": 8}, "memory_length", "memory_length 8 is of segments; set segment_length"),
    ({"segment_length": 16, "memory_length": 17}, "memory_length", "memory_length 17 is more than segment_length 16"),
    ({"segment_length": 16, "attention_pattern": "sliding"}, "segment_length", "goes with attention_pattern full, not sliding"),
    ({"segment_length": 16, "num_nextn_predict_layers": 1}, "num_nextn_predict_layers", "set num_nextn_predict_layers to 0"),
]


@pytest.mark.parametrize(("change", "field", "words"), MISFITS)
def test_sizes_that_do_not_fit_are_named_with_their_values_and_what_would_fit(
    change: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelSpec.model_validate(change)
    with pytest.raises(SpecInvalid, match=words) as refused:
        parse_spec({"name": "a", "model": change, "data_pipeline": {"sequence_length": 64}})
    assert refused.value.status == 422
    assert [error.pointer for error in refused.value.errors] == [f"/model/{field}"]


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ({"num_attention_heads_by_layer": [6, 0, 6, 6]}, "num_attention_heads_by_layer/1"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"rope_scaling": {"factor": 0.5, "original_max_position_embeddings": 64}}, "rope_scaling/factor"),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling/original_max_position_embeddings"),
        ({"preset": "8b"}, "preset"),
    ],
)
def test_a_value_that_is_wrong_by_itself_is_pointed_at(model: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecInvalid) as refused:
        parse_spec({"name": "a", "model": model})
    assert [error.pointer for error in refused.value.errors] == [f"/model/{field}"]


def test_a_field_that_does_not_fit_its_preset_is_pointed_at() -> None:
    with pytest.raises(SpecInvalid, match="hidden_size 4096 is not divisible by num_attention_heads 96") as refused:
        parse_spec({"name": "a", "model": {"preset": "7b", "num_attention_heads": 96}})
    assert refused.value.pointer == "/model/num_attention_heads"


@pytest.mark.parametrize(
    ("spec", "pointer", "words"),
    [
        (
            {"model": {"max_position_embeddings": 200}},
            "/model/max_position_embeddings",
            "rows of 256 tokens are longer than model.max_position_embeddings 200; lower sequence_length to 200",
        ),
        (
            {"model": {"preset": "7b"}, "data_pipeline": {"sequence_length": 8192}},
            "/data_pipeline/sequence_length",
            "rows of 8192 tokens are longer than model.max_position_embeddings 4096; lower sequence_length to 4096",
        ),
        (
            {"model": {"max_position_embeddings": 300}, "data_pipeline": {"chain_segments": 2}},
            "/data_pipeline/chain_segments",
            "rows of 512 tokens are longer than model.max_position_embeddings 300; lower sequence_length to 150",
        ),
        (
            {"model": {"attention_pattern": "hierarchical"}, "data_pipeline": {"document_alignment": 32}},
            "/data_pipeline/document_alignment",
            "document_alignment 32 is not a multiple of model.hierarchical_block 64; leave it out",
        ),
        (
            {"model": {"attention_pattern": "hierarchical"}, "data_pipeline": {"sequence_length": 96}},
            "/data_pipeline/sequence_length",
            "model.hierarchical_block 64 does not divide rows of 96",
        ),
        (
            {"model": {"segment_length": 96}},
            "/model/segment_length",
            "segment_length 96 does not divide rows of 256 tokens; set it to data_pipeline.sequence_length",
        ),
        (
            {
                "model": {"segment_length": 64},
                "data_pipeline": {
                    "sequence_length": 64,
                    "curriculum": [{"sequence_length": 32, "fraction": 0.5}, {"sequence_length": 64, "fraction": 0.5}],
                },
            },
            "/model/segment_length",
            "segment_length 64 does not divide rows of 32 and 64 tokens",
        ),
    ],
)
def test_rows_that_do_not_fit_the_model_are_named(spec: dict[str, Any], pointer: str, words: str) -> None:
    with pytest.raises(SpecInvalid, match=words) as refused:
        parse_spec({"name": "a", **spec})
    assert [error.pointer for error in refused.value.errors] == [pointer]


def test_documents_are_aligned_to_the_blocks_of_hierarchical_attention() -> None:
    def alignment(model: dict[str, Any], **data: Any) -> int:
        return TrainSpec.model_validate({"model": model, **data}).data_pipeline.document_alignment

    hierarchical = {"attention_pattern": "hierarchical"}
    assert alignment({}) == 1
    assert alignment(hierarchical) == 64
    assert alignment({**hierarchical, "hierarchical_block": 16, "hierarchical_slots": 4}) == 16
    assert alignment(hierarchical, data_pipeline={"sequence_length": 512}) == 64
    assert alignment(hierarchical, data_pipeline={"document_alignment": 128}) == 128, "what is given stands"


def test_what_is_no_block_size_is_one_error() -> None:
    with pytest.raises(SpecInvalid) as refused:
        parse_spec({"name": "a", "model": {"attention_pattern": "hierarchical", "hierarchical_block": "many"}})
    assert [error.pointer for error in refused.value.errors] == ["/model/hierarchical_block"]


def test_rows_of_segments_and_chains_fit() -> None:
    data = {"sequence_length": 64, "chain_segments": 4}
    spec = TrainSpec.model_validate({"model": {"segment_length": 64, "memory_length": 64}, "data_pipeline": data})
    assert spec.data_pipeline.row_length == 256
    assert spec.curriculum.at(0).row_length == 256


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        (
            {"global_batch_size": 10, "micro_batch_size": 4},
            "global_batch_size",
            "global_batch_size 10 is not divisible by micro_batch_size 4",
        ),
        ({"tokens": 1000, "steps": 10}, "tokens", "tokens and steps are both given"),
        ({"warmup_steps": 1, "warmup_fraction": 0.1}, "warmup_steps", "warmup_steps and warmup_fraction are both given"),
        (
            {"activation_bytes": 1, "activation_checkpointing": "full"},
            "activation_bytes",
            "activation_bytes and activation_checkpointing are both given",
        ),
        ({"adaptive_dropout": {}}, "adaptive_dropout", "set eval_interval"),
        ({"eval_interval": 1, "adaptive_dropout": {"low": 0.4}}, "adaptive_dropout/low", "low 0.4 is more than high 0.3"),
        (
            {"batch_warmup": {"start": 4, "fraction": 0.5}},
            "batch_warmup/start",
            "start 4 is not divisible by micro_batch_size 8",
        ),
        ({"batch_warmup": {"start": 64, "fraction": 0.5}}, "batch_warmup/start", "start 64 is more than global_batch_size 32"),
    ],
)
def test_what_contradicts_itself_in_the_recipe_is_an_error(change: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TrainingSpec.model_validate(change)
    with pytest.raises(SpecInvalid) as refused:
        parse_spec({"name": "a", "training": change})
    assert [error.pointer for error in refused.value.errors] == [f"/training/{field}"]


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


def test_a_block_that_does_not_divide_the_rows_is_named_and_not_the_alignment_that_follows_from_it() -> None:
    given = {
        "model": {"attention_pattern": "hierarchical", "hierarchical_block": 64},
        "data_pipeline": {
            "sequence_length": 128,
            "curriculum": [{"sequence_length": 32, "fraction": 0.5}, {"sequence_length": 128, "fraction": 0.5}],
        },
    }
    with pytest.raises(ValidationError, match=r"model\.hierarchical_block 64 does not divide rows of 32 tokens"):
        TrainSpec.model_validate(given)


def test_dropout_is_either_fixed_or_follows_the_held_out_loss() -> None:
    training = {"adaptive_dropout": {}, "eval_interval": 5}
    with pytest.raises(ValidationError, match=r"model.dropout 0.4 and training.adaptive_dropout are both given"):
        TrainSpec.model_validate({"model": {"dropout": 0.4}, "training": training})
    assert TrainSpec.model_validate({"training": training}).training.adaptive_dropout is not None

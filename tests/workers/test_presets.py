"""Models by name: as large as they are said to be, open to changes, and their structure trains."""

from pathlib import Path
from typing import Any

import pytest
import torch

from service.spec import TrainJob
from service.validation import parse_spec
from tests.workers.tiny import VOCAB, steps, tiny_spec
from workers.engine import Engine
from workers.mesh import Membership
from workers.model.count import count_parameters
from workers.model.decoder import Decoder
from workers.model.presets import PRESETS, PresetName
from workers.model.spec import ModelSpec

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
every_preset = pytest.mark.parametrize("name", PRESETS)

SMALL = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
}
AT_MOST = {"num_hidden_layers": 3, "n_routed_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 4}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
LEARNING_RATE = 1e-2


def shrunk(name: PresetName) -> ModelSpec:
    """The preset's structure in a few thousand parameters: what attends, what routes and how, and what is predicted further."""
    spec = ModelSpec(preset=name)
    changes: dict[str, Any] = {**SMALL, **{field: min(getattr(spec, field), most) for field, most in AT_MOST.items()}}
    changes["num_key_value_heads"] = max(1, 4 * spec.num_key_value_heads // spec.num_attention_heads)
    changes["topk_group"] = max(1, changes["n_group"] * spec.topk_group // spec.n_group)
    if spec.q_lora_rank is not None:
        changes["q_lora_rank"] = 24
    if spec.rope_scaling is not None:
        changes["rope_scaling"] = {**spec.rope_scaling.model_dump(), **YARN}
    return ModelSpec.model_validate({**spec.model_dump(), **changes})


def test_every_name_is_a_preset_and_every_preset_a_name() -> None:
    assert set(PRESETS) == set(PresetName.__args__)  # type: ignore[attr-defined]


@every_preset
def test_a_preset_is_as_large_as_it_is_said_to_be(name: PresetName) -> None:
    spec, preset = ModelSpec(preset=name), PRESETS[name]
    with torch.device("meta"):
        model = Decoder(spec, preset.vocab_size, torch.bfloat16)
    predictors = sum(p.numel() for p in model.predictors.parameters())
    assert sum(p.numel() for p in model.parameters()) - predictors == pytest.approx(preset.total, rel=0.01)
    count = count_parameters(spec, preset.vocab_size)
    assert count.total == sum(p.numel() for p in model.parameters())
    assert count.by_part["multi_token_prediction"] == predictors
    assert count.active == pytest.approx(preset.active, rel=0.01)


@every_preset
def test_a_field_given_beside_a_preset_counts(name: PresetName) -> None:
    plain, changed = ModelSpec(preset=name), ModelSpec.model_validate({"preset": name, "num_hidden_layers": 5})
    assert plain.num_hidden_layers != changed.num_hidden_layers == 5
    assert changed.model_copy(update={"num_hidden_layers": plain.num_hidden_layers}) == plain
    assert ModelSpec.model_validate(changed.model_dump(mode="json")) == changed


def test_tiny_is_the_quickstarts_model() -> None:
    job = parse_spec(QUICKSTART.read_text())
    assert isinstance(job, TrainJob)
    assert ModelSpec(preset="tiny").model_copy(update={"preset": None}) == job.model
    assert PRESETS["tiny"].vocab_size == job.tokenizer.vocab_size


@every_preset
def test_a_presets_structure_trains(name: PresetName) -> None:
    spec = tiny_spec(steps=20, learning_rate=LEARNING_RATE).model_copy(update={"model": shrunk(name)})
    engine = Engine.build(spec, Membership(), VOCAB)
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    figures = steps(engine, 0, 20)
    losses = [loss for loss, _ in figures]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    still = [name for name, p in engine.model.named_parameters() if torch.equal(p, before[name])]
    assert not still, "every part learns"
    engine.teardown()


@every_preset
def test_a_shrunk_preset_has_every_part_of_its_model(name: PresetName) -> None:
    def parts(spec: ModelSpec) -> set[str]:
        with torch.device("meta"):
            names = dict(Decoder(spec, VOCAB, torch.float32).named_parameters())
        # Without the numbers of layers: blocks.17.attention.qkv
        return {".".join(part for part in each.split(".") if not part.isdigit()) for each in names}

    whole, small = ModelSpec(preset=name), shrunk(name)
    assert parts(small) == parts(whole)
    for field in ("scoring_func", "norm_topk_prob", "routed_scaling_factor", "qk_norm", "num_nextn_predict_layers"):
        assert getattr(small, field) == getattr(whole, field)
    assert (small.topk_group < small.n_group) == (whole.topk_group < whole.n_group)
    assert (small.num_key_value_heads < small.num_attention_heads) == (whole.num_key_value_heads < whole.num_attention_heads)

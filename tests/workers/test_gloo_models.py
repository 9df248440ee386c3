"""Whatever the model is made of and whatever trains it, two ranks train as one and hand their state over."""

from typing import Any

import pytest

from tests.workers.conftest import GlooPool
from tests.workers.tiny import run_steps, tiny_spec
from workers.mesh import Membership
from workers.model.spec import ModelSpec
from workers.spec import TrainSpec

pytestmark = pytest.mark.gloo

LATENT = {"attention": "mla", "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "latent attention, groups, further tokens, auxiliary losses": (
        {
            **LATENT,
            **{"q_lora_rank": 12, "n_group": 4, "topk_group": 2, "num_nextn_predict_layers": 1},
            **{"router_aux_loss_coef": 0.01, "router_z_loss_coef": 0.001, "first_k_dense_replace": 1},
        },
        {},
    ),
    "softmax router, tied, three experts": (
        {"scoring_func": "softmax", "tie_word_embeddings": True, "n_routed_experts": 3, "qk_norm": "layer"},
        {},
    ),
    "windows, dropout, recomputation": (
        {"attention_pattern": "layered", "sliding_window": 5, "dropout": 0.2},
        {"activation_checkpointing": "selective"},
    ),
    "muon with moments in bf16": ({"qk_norm": "head"}, {"optimizer": "muon", "moments_dtype": "bf16"}),
    "fp16": ({}, {"precision": "fp16"}),
}


def variant(name: str) -> TrainSpec:
    model, training = VARIANTS[name]
    spec = tiny_spec(**training)
    merged = ModelSpec.model_validate({**spec.model.model_dump(), **model})
    return spec.model_copy(update={"model": merged})


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_train_as_one_and_one_goes_on(gloo_pool: GlooPool, name: str) -> None:
    spec = variant(name)
    one, _ = run_steps(Membership(), spec, 0, 6, None)
    (two, state), (other, _) = gloo_pool.run(run_steps, spec, 0, 4, None)
    assert two == other
    later, _ = run_steps(Membership(), spec, 4, 6, state)
    tolerance = 5e-3 if spec.training.precision == "fp16" else 1e-4
    assert [loss for loss, _ in two + later] == pytest.approx([loss for loss, _ in one], rel=tolerance)

"""A budget of activation bytes chooses each block's mode, is kept, and changes no number."""

from collections import Counter
from typing import Any

import pytest
import torch

from tests.workers.synthetic import two_documents_a_row
from workers.activations import checkpointing, kept_bytes
from workers.budget import RecomputeBudgetTooSmall
from workers.engine import Engine
from workers.memory import modes
from workers.mesh import Membership
from workers.recompute import measure
from workers.spec import TrainSpec

CPU = torch.device("cpu")
LAYERS = 4


def of(model: dict[str, Any] | None = None, **training: Any) -> TrainSpec:
    small = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "moe_intermediate_size": 32}
    recipe = {"global_batch_size": 2, "micro_batch_size": 2, "steps": 4, "warmup_steps": 0, **training}
    whole = {"data_pipeline": {"sequence_length": 64}, "tokenizer": {"vocab_size": 300}}
    return TrainSpec.model_validate(whole | {"model": small | (model or {}), "training": recipe})


def total(mode: Any, spec: TrainSpec) -> int:
    return sum(block[mode] for block in kept_bytes(spec, CPU, torch.float32))


def test_less_is_kept_the_smaller_the_budget() -> None:
    most, less, least = (total(mode, of()) for mode in ("none", "selective", "full"))

    def chosen(budget: int) -> Counter[str]:
        return Counter(checkpointing(of(activation_bytes=budget), CPU, torch.float32))

    assert chosen(most) == {"none": LAYERS}
    assert chosen(most - 1) == {"selective": 1, "none": LAYERS - 1}
    assert chosen(less) == {"selective": LAYERS}
    assert chosen(less - 1)["full"] == 1
    assert chosen(least) == {"full": LAYERS}


def test_a_budget_below_full_recomputation_points_at_its_field() -> None:
    with pytest.raises(RecomputeBudgetTooSmall) as caught:
        checkpointing(of(activation_bytes=1), CPU, torch.float32)
    assert caught.value.pointer == "/training/activation_bytes"


def test_without_a_budget_the_spec_s_own_mode_counts() -> None:
    assert checkpointing(of(activation_checkpointing="full"), CPU, torch.float32) == ["full"] * LAYERS


MIXED = {"attention_pattern": "layered", "sliding_window": 8, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1}


@pytest.mark.parametrize("model", [{}, MIXED, {"dropout": 0.1, "num_attention_heads_by_layer": (4, 2, 2, 4), "head_dim": 8}])
def test_fake_blocks_keep_what_real_ones_do(model: dict[str, Any]) -> None:
    spec = of(model)
    engine = Engine.build(spec, Membership(generation=0, rank=0, world_size=1, local_rank=0), 300)
    inputs = engine.inputs(two_documents_a_row(spec))
    x_BTD = torch.randn(2, 64, 32)
    from workers.model.rope import rope_angles

    angles = rope_angles(inputs.positions_BT, spec.model, torch.float32)
    noise = None if inputs.noise is None else inputs.noise.at(0)
    real = [measure(b, x_BTD, angles, inputs.sights[b.pattern], inputs.valid_BT, noise) for b in engine.model.all_blocks]
    assert kept_bytes(spec, CPU, torch.float32) == real


def losses(spec: TrainSpec) -> list[tuple[float, float]]:
    engine = Engine.build(spec, Membership(generation=0, rank=0, world_size=1, local_rank=0), 300)
    results = [engine.train_step([two_documents_a_row(spec)]) for _ in range(3)]
    return [(result.loss, result.grad_norm) for result in results]


@pytest.mark.parametrize("model", [{}, MIXED | {"dropout": 0.2}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_are_the_same_to_the_bit(model: dict[str, Any], precision: str) -> None:
    plain = of(model, precision=precision)
    budget = total("selective", plain) // 2
    tight = of(model, precision=precision, activation_bytes=budget)
    assert set(checkpointing(tight, CPU, torch.bfloat16 if precision == "bf16" else torch.float32)) != {"none"}
    assert losses(tight) == losses(plain)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3])
def test_what_is_kept_obeys_the_budget(share: float) -> None:
    budget = round(share * total("none", of()))
    spec = of(activation_bytes=budget)
    chosen, kept = checkpointing(spec, CPU, torch.float32), kept_bytes(spec, CPU, torch.float32)
    assert sum(block[mode] for block, mode in zip(kept, chosen, strict=True)) <= budget
    # The plan, which cannot measure, chooses nearly alike.
    assert abs(sum(a != b for a, b in zip(modes(spec), chosen, strict=True))) <= 1

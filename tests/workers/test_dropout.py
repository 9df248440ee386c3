"""Dropout: as much as was asked for, the same draw for the same (seed, sample, position, layer, channel), none in evaluation.

Legend: B rows, T positions, D channels.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch

from data.dataset import Batch
from tests.workers.tiny import VOCAB, rows, tiny_spec
from workers.engine import Engine
from workers.mesh import Membership
from workers.model.dropout import Noise, dropped
from workers.spec import TrainSpec

RATE = 0.2
T, D = 16, 256


def noise(*samples: int, seed: int = 0, layer: int = 0, rate: float = RATE, length: int = T) -> Noise:
    return Noise.of_rows(seed, torch.tensor(samples), length, rate).at(layer)


def kept(*samples: int, site: int = 0, **of_noise: Any) -> torch.Tensor:
    """[B, T, D]: which channels stay."""
    drawn = noise(*samples, **of_noise)
    return dropped(torch.ones(*drawn.keys_BT.shape, D), drawn, site) != 0


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_rate_is_dropped_and_the_rest_scaled_to_the_same_mean(rate: float, dtype: torch.dtype) -> None:
    x_BTD = torch.ones(64, 128, 64, dtype=dtype)
    y_BTD = dropped(x_BTD, noise(*range(64), rate=rate, length=128), 0)
    assert y_BTD.dtype == dtype
    share = (y_BTD == 0).double().mean().item()
    assert share == pytest.approx(rate, abs=5 * math.sqrt(rate * (1 - rate) / x_BTD.numel()))
    values = y_BTD.double().unique()
    assert values.tolist() == [0.0, pytest.approx(1 / (1 - rate), rel=torch.finfo(dtype).eps / 2)]


def test_each_row_position_and_channel_is_dropped_as_often() -> None:
    drops_BTD = ~kept(*range(256))
    for over in ((0, 1), (0, 2), (1, 2)):
        count = drops_BTD.numel() / drops_BTD.double().mean(over).numel()
        assert ((drops_BTD.double().mean(over) - RATE).abs() < 6 * math.sqrt(RATE * (1 - RATE) / count)).all()


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"layer": 1}, {"layer": 40}, {"site": 1}],
    ids=["seed", "layer", "a layer far up", "branch"],
)
def test_another_name_is_another_draw(other: dict[str, int]) -> None:
    assert _agreement(kept(*range(64)), kept(*range(64), **other)) < 5


def test_samples_and_positions_do_not_share_draws() -> None:
    drawn_BTD = kept(*range(64))
    for a, b in ((drawn_BTD[:-1], drawn_BTD[1:]), (drawn_BTD[:, :-1], drawn_BTD[:, 1:])):
        assert _agreement(a, b) < 5
    # Sample 1 at position 0 is not sample 0 at position 1.
    assert _agreement(drawn_BTD[1:, :-1], drawn_BTD[:-1, 1:]) < 5


def _agreement(a: torch.Tensor, b: torch.Tensor) -> float:
    """How many standard deviations two draws agree more, or less, often than independent ones."""
    chance = RATE**2 + (1 - RATE) ** 2
    return abs((a == b).double().mean().item() - chance) / math.sqrt(chance * (1 - chance) / a.numel())


def test_a_row_draws_the_same_in_whatever_batch_and_order() -> None:
    together = kept(7, 2**40, 9)
    assert torch.equal(together[1], kept(2**40)[0])
    assert torch.equal(together.flip(0), kept(9, 2**40, 7))
    assert torch.equal(kept(7, length=5)[0], together[0, :5]), "a shorter row is the beginning of a longer one"


def test_no_noise_drops_nothing() -> None:
    x = torch.randn(2, 3, 4)
    assert dropped(x, None, 0) is x


def test_the_gradient_passes_where_the_value_does() -> None:
    x = torch.randn(1, T, D, requires_grad=True)
    y = dropped(x, noise(3), 0)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * x, y)


# -- in the engine ---------------------------------------------------------------------------------------------------------


def with_dropout(rate: float = RATE, **training: Any) -> TrainSpec:
    spec = tiny_spec(**training)
    return spec.model_copy(update={"model": spec.model.model_copy(update={"dropout": rate})})


def trained(spec: TrainSpec, steps: int = 3) -> Engine:
    """Past the start, where blocks add nothing that could be dropped."""
    engine = Engine.build(spec, Membership(), VOCAB)
    for step in range(steps):
        engine.train_step(rows(step, 4))
    return engine


def gradients(engine: Engine, batches: list[Batch]) -> dict[str, torch.Tensor]:
    engine._backward(batches)
    found = {name: p.grad.clone() for name, p in engine.model.named_parameters() if p.grad is not None}
    engine.optimizer.zero_grad()
    return found


def joined(batches: list[Batch]) -> Batch:
    names = ("tokens", "document_ids", "positions", "samples")
    return Batch(*(np.concatenate([getattr(b, name) for b in batches]) for name in names))


def test_training_drops_and_evaluation_does_not() -> None:
    engine = trained(with_dropout())
    batch = rows(100, 1)
    plain = Engine.build(with_dropout(0.0), Membership(), VOCAB, engine.full_state())
    assert engine.evaluate(batch) == plain.evaluate(batch)
    tokens_BT = torch.from_numpy(batch[0].tokens).long()
    assert torch.equal(engine.logits(tokens_BT), plain.logits(tokens_BT))
    assert engine.train_step(batch).loss != plain.train_step(batch).loss


def test_micro_batches_and_their_order_change_no_draw() -> None:
    engine = trained(with_dropout())
    batches = rows(50, 4)
    expected = gradients(engine, batches)
    for other in (batches[::-1], [joined(batches)], [joined(batches[2:]), joined(batches[:2])]):
        for name, value in gradients(engine, other).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    # The samples' numbers are what they draw by.
    shifted = [Batch(b.tokens, b.document_ids, b.positions, b.samples + 1) for b in batches]
    assert not torch.allclose(gradients(engine, shifted)["head"], expected["head"], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_computed_again_is_dropped_again(mode: str, precision: str) -> None:
    state = trained(with_dropout(precision=precision)).full_state()
    found = []
    for checkpointing in ("none", mode):
        spec = with_dropout(precision=precision, activation_checkpointing=checkpointing)
        found.append(gradients(Engine.build(spec, Membership(), VOCAB, state), rows(50, 2)))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_predictors_of_further_tokens_drop_too() -> None:
    spec = with_dropout()
    model = spec.model.model_copy(update={"num_nextn_predict_layers": 1})
    engine = trained(spec.model_copy(update={"model": model}))
    inputs = engine.inputs(rows(50, 1)[0])
    assert inputs.noise is not None
    # With the main model's blocks at rest only the predictor's draws are left.
    for block in engine.model.blocks:
        torch.nn.init.zeros_(block.attention.out)
        for name, p in block.feed_forward.named_parameters():
            if name.endswith("down"):
                torch.nn.init.zeros_(p)
    dropped_loss, plain = engine.model(inputs), engine.model(inputs._replace(noise=None))
    assert dropped_loss.cross_entropy == plain.cross_entropy
    assert dropped_loss.further != plain.further

"""One optimizer step: what it weighs, what it agrees on, what it refuses."""

import socket
from typing import Any

import numpy as np
import pytest
import torch

from data.dataset import Batch
from tests.workers.tiny import VOCAB, rows, run_steps, steps, tiny_spec
from workers.engine import Engine, TrainingDiverged
from workers.mesh import GpuMissing, Membership, deal
from workers.model import moe
from workers.model.spec import ModelSpec
from workers.schedule import learning_rate

ALONE = Membership()


def engine(**training: Any) -> Engine:
    return Engine.build(tiny_spec(**training), ALONE, VOCAB)


def joined(batches: list[Batch]) -> Batch:
    return Batch(
        np.concatenate([b.tokens for b in batches]),
        np.concatenate([b.document_ids for b in batches]),
        np.concatenate([b.positions for b in batches]),
    )


RECIPES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    # Its updates are a fifth of AdamW's first ones.
    "muon": {"optimizer": "muon", "learning_rate": 3e-2},
    "muon in bf16, moments too": {"optimizer": "muon", "learning_rate": 3e-2, "precision": "bf16", "moments_dtype": "bf16"},
    "smoothed and focused": {"label_smoothing": 0.1, "focal_gamma": 1.0},
    "recomputed": {"activation_checkpointing": "full"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_lowers_the_loss(recipe: str) -> None:
    losses = [loss for loss, _ in steps(engine(**{"steps": 40, "learning_rate": 1e-2, **RECIPES[recipe]}), 0, 40)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_master_weights_and_moments_are_fp32_in_half_precision(precision: str, optimizer: str) -> None:
    e = engine(precision=precision, optimizer=optimizer)
    steps(e, 0, 1)
    state = e.state_dict()
    assert {t.dtype for t in state["model"].values()} == {torch.float32}
    assert {t.dtype for pair in state["optimizer"].values() for t in pair.values()} == {torch.float32}


def test_the_experts_compute_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    product = moe.grouped_mm

    def watched(x: torch.Tensor, w: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.update({x.dtype, w.dtype})
        return product(x, w, *rest)

    monkeypatch.setattr(moe, "grouped_mm", watched)
    steps(engine(precision="bf16"), 0, 1)
    assert seen == {torch.bfloat16}


def test_muon_has_every_matrix_of_the_blocks_and_nothing_else() -> None:
    spec = tiny_spec(optimizer="muon")
    everywhere = {"first_k_dense_replace": 1, "num_nextn_predict_layers": 1}
    for model in ({}, {"attention": "mla"}, {"attention": "mla", "q_lora_rank": 8}):
        changed = ModelSpec.model_validate({**spec.model.model_dump(), **everywhere, **model})
        e = Engine.build(spec.model_copy(update={"model": changed}), ALONE, VOCAB)
        with_muon = {name for name, p in e.model.named_parameters() if "momentum" in "".join(e.optimizer.state[p])}
        inside = {name for name, p in e.model.named_parameters() if p.ndim >= 2 and name.startswith(("blocks.", "predictors."))}
        assert with_muon == {name for name in inside if not name.endswith("router")}
        assert with_muon < set(dict(e.model.named_parameters()))


@pytest.mark.parametrize(
    "recipe", [{"label_smoothing": 0.2}, {"focal_gamma": 2.0}, {"label_smoothing": 0.1, "focal_gamma": 0.5}]
)
def test_the_reported_loss_is_the_plain_one_whatever_is_lowered(recipe: dict[str, float]) -> None:
    e, plain = engine(**recipe), engine()
    first, expected = e.train_step(rows(0, 4)), plain.train_step(rows(0, 4))
    assert first.loss == pytest.approx(expected.loss, rel=1e-6)
    assert first.grad_norm != pytest.approx(expected.grad_norm, rel=1e-2), "another gradient"
    # Adam's first step is the gradient's signs; the second tells two objectives apart.
    for each in (e, plain):
        steps(each, 1, 2)
    held_out = e.evaluate(rows(2, 4))
    assert held_out != plain.evaluate(rows(2, 4))
    assert e.train_step(rows(2, 4)).loss == pytest.approx(held_out, rel=1e-6)


def test_what_further_tokens_and_routers_add_is_reported_beside_the_loss() -> None:
    spec = tiny_spec()
    changed = {"num_nextn_predict_layers": 1, "router_aux_loss_coef": 0.01, "router_z_loss_coef": 0.01}
    model = ModelSpec.model_validate({**spec.model.model_dump(), **changed})
    e, plain = Engine.build(spec.model_copy(update={"model": model}), ALONE, VOCAB), engine()
    held_out = e.evaluate(rows(0, 4))
    result, other = e.train_step(rows(0, 4)), plain.train_step(rows(0, 4))
    assert result.loss == pytest.approx(held_out, rel=1e-6)
    assert result.further_loss == pytest.approx(5.7, rel=0.1), "nothing is known of them yet"
    # One a layer were the load even; of few tokens it is not quite.
    assert 3 <= result.balance < 6
    assert (other.further_loss, other.balance) == (0.0, 0.0)
    assert result.counts_LE.shape == (3, 8)


def test_accumulated_micro_batches_equal_one_large_one() -> None:
    small, large = engine(), engine()
    a = small.train_step(rows(0, 4))
    b = large.train_step([joined(rows(0, 4))])
    assert a.targets == b.targets
    assert (a.loss, a.grad_norm) == pytest.approx((b.loss, b.grad_norm), rel=1e-5)
    assert torch.equal(a.counts_LE, b.counts_LE)
    for name, value in small.full_state()["model"].items():
        torch.testing.assert_close(value, large.full_state()["model"][name], rtol=1e-3, atol=1e-5)


def test_loss_is_the_mean_over_targets_not_over_micro_batches() -> None:
    e = engine()
    batches = rows(0, 4)
    targets = [int(b.target_mask.sum()) for b in batches]
    assert len(set(targets)) > 1
    losses = [e.evaluate([b]) for b in batches]
    expected = sum(loss * n for loss, n in zip(losses, targets, strict=True)) / sum(targets)
    result = e.train_step(batches)
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert result.targets == sum(targets)


def test_a_micro_batch_of_padding_weighs_nothing() -> None:
    plain, padded = engine(), engine()
    a = plain.train_step(rows(0, 3))
    b = padded.train_step([*rows(0, 3), None])
    assert (a.loss, a.grad_norm, a.targets) == (b.loss, b.grad_norm, b.targets)
    assert torch.equal(a.counts_LE, b.counts_LE)


def test_gradients_are_clipped_to_the_norm() -> None:
    # With an eps this large AdamW's update is proportional to the gradient. (At the very first step only the head has one.)
    recipe = {"eps": 1e3, "learning_rate": 1e2, "weight_decay": 0.0}
    small, large = engine(clip_grad_norm=1e-2, **recipe), engine(clip_grad_norm=1e9, **recipe)
    before = small.full_state()["model"]
    norms = [e.train_step(rows(0, 4)).grad_norm for e in (small, large)]
    assert norms[0] == norms[1] > 1e-2
    name = "head"
    moved = [(e.full_state()["model"][name] - before[name]).norm().item() for e in (small, large)]
    assert moved[0] / moved[1] == pytest.approx(1e-2 / norms[0], rel=0.01)


def test_router_bias_follows_the_counts_once_a_step() -> None:
    e = engine()
    result = e.train_step(rows(0, 4))
    rate = e.spec.model.router_bias_update_rate
    counts = result.counts_LE[0].float()
    expected = rate * torch.sign(counts.mean() - counts)
    torch.testing.assert_close(e.model.experts[0].bias, expected - expected.mean())
    assert result.counts_LE.sum(1).tolist() == [sum(int((b.document_ids >= 0).sum()) for b in rows(0, 4)) * 2] * 2


def test_a_loss_that_is_no_number_names_its_step_and_is_not_applied() -> None:
    e = engine(max_skipped_steps=0)
    steps(e, 0, 2)
    before = e.full_state()
    with torch.no_grad():
        e.model.norm.weight[0] = float("nan")
    with pytest.raises(TrainingDiverged, match="step 3: the loss is nan"):
        steps(e, 2, 3)
    assert e.step == 2
    torch.testing.assert_close(e.full_state()["model"]["embedding"], before["model"]["embedding"], rtol=0, atol=0)
    assert all(p.grad is None for p in e.model.parameters()), "the next step starts afresh"


def test_state_handed_over_goes_on_exactly() -> None:
    spec = tiny_spec()
    whole, _ = run_steps(ALONE, spec, 0, 6, None)
    first, state = run_steps(ALONE, spec, 0, 3, None)
    second, _ = run_steps(ALONE, spec, 3, 6, state)
    assert first + second == whole


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": 1e-3},
        {"learning_rate_schedule": "constant", "warmup_steps": 0},
        {"betas": (0.5, 0.8), "eps": 1e-6},
        {"weight_decay": 5.0},
        {"label_smoothing": 0.3},
        {"clip_grad_norm": 1e-3},
        {"muon_momentum": 0.5},
    ],
)
def test_another_recipe_goes_on_from_the_weights_and_moments_with_its_own_values(changed: dict[str, Any]) -> None:
    same = {"optimizer": "muon"} if "muon_momentum" in changed else {}
    _, state = run_steps(ALONE, tiny_spec(**same), 0, 3, None)
    after, whole = run_steps(ALONE, tiny_spec(**same), 3, 4, state)
    spec = tiny_spec(**same, **changed)
    e = Engine.build(spec, ALONE, VOCAB, state)
    taken_over = e.full_state()
    assert e.step == 3
    torch.testing.assert_close(taken_over["optimizer"], state["optimizer"], rtol=0, atol=0)
    torch.testing.assert_close(taken_over["model"], state["model"], rtol=0, atol=0)
    assert all(moment.any() for moments in taken_over["optimizer"].values() for moment in moments.values())

    result = e.train_step(rows(3, 4))
    assert result.loss == after[0][0], "a loss is measured before the update"
    assert result.learning_rate == learning_rate(spec.training, 3, spec.total_steps)
    for group in e.optimizer.param_groups:
        if "betas" in group:
            assert group["betas"] == spec.training.betas
        if "momentum" in group:
            assert group["momentum"] == spec.training.muon_momentum
    changes = [not torch.equal(tensor, whole["model"][name]) for name, tensor in e.full_state()["model"].items()]
    assert any(changes)
    e.teardown()


def test_one_token_context_is_a_model_that_sees_one_token() -> None:
    e = engine()
    batch = rows(0, 1)[0]
    tokens = torch.from_numpy(batch.tokens).long()
    mask = torch.from_numpy(batch.target_mask)
    alone = e.logits(tokens[0, :-1, None])[:, 0]
    losses = torch.nn.functional.cross_entropy(alone, tokens[0, 1:], reduction="none")
    assert e.evaluate([batch], one_token_context=True) == pytest.approx(losses[mask[0]].mean().item(), rel=1e-5)


def test_a_gpu_that_is_asked_for_and_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spec = tiny_spec()
    spec = spec.model_copy(update={"gpu_config": spec.gpu_config.model_copy(update={"gpus_per_node": 1})})
    with pytest.raises(GpuMissing, match=f"no GPU for rank 0 on node {socket.gethostname()}") as caught:
        Engine.build(spec, ALONE, VOCAB)
    assert (caught.value.code, caught.value.pointer) == ("gpu_missing", "/gpu_config/gpus_per_node")


def test_an_ordered_list_is_dealt_in_contiguous_slices_of_equal_length() -> None:
    assert [deal("abcd", rank, 2) for rank in range(2)] == [["a", "b"], ["c", "d"]]
    assert [deal("abc", rank, 2) for rank in range(2)] == [["a", "b"], ["c", None]]
    assert [deal("ab", rank, 4) for rank in range(4)] == [["a"], ["b"], [None], [None]]


@pytest.mark.parametrize(
    "wrapped",
    [{"compile": True}, {"activation_checkpointing": "full"}, {"compile": True, "activation_checkpointing": "selective"}],
)
def test_parameter_names_do_not_know_of_compilation_and_recomputation(wrapped: dict[str, Any]) -> None:
    names, plain = (set(engine(**options).state_dict()["model"]) for options in (wrapped, {}))
    assert names == plain

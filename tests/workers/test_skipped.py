"""Steps whose loss or gradient is no number: they change nothing, are counted, and the run recovers or says where it ended."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from data.dataset import PackedDataset
from tests.workers.tiny import VOCAB, InjectedFault, Recorder, fail_at, rows, steps, tiny_spec
from workers.checkpoint import CheckpointStore
from workers.engine import Engine, TrainingDiverged
from workers.loop import Hooks, train
from workers.mesh import Membership
from workers.recipe_state import LossScale
from workers.spec import TrainSpec

ALONE = Membership()
TOO_LARGE = 2.0**28
"""A loss scale that overflows for several steps."""
NAN = float("nan")


def engine(**training: Any) -> Engine:
    return Engine.build(tiny_spec(**training), ALONE, VOCAB)


@contextmanager
def poisoned(e: Engine) -> Iterator[None]:
    """What the head reads is no number."""
    handle = e.model.norm.register_forward_hook(lambda module, inputs, output: output * NAN)
    yield
    handle.remove()


def tensors(e: Engine) -> dict[str, torch.Tensor]:
    """Weights, router biases, moments and Adam's count of steps."""
    state = e.full_state()
    moments = {f"{name}/{key}": value for name, pair in state["optimizer"].items() for key, value in pair.items()}
    counts = {f"{name}/step": e.optimizer.state[p]["step"].clone() for name, p in e.model.named_parameters()}
    return {**state["model"], **moments, **counts}


def assert_same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


RECIPES = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "muon": {"optimizer": "muon"},
    "bf16 moments": {"moments_dtype": "bf16"},
    "moving betas": {"final_betas": (0.8, 0.9)},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_skipped_step_changes_nothing_and_the_next_one_is_as_if_it_had_not_been(recipe: str) -> None:
    broken, whole = engine(**RECIPES[recipe]), engine(**RECIPES[recipe])
    steps(broken, 0, 2)
    steps(whole, 0, 2)
    before = tensors(broken)
    with poisoned(broken):
        result = broken.train_step(rows(9, 4))
    assert not result.applied
    assert math.isnan(result.loss)
    assert_same(tensors(broken), before)
    assert all(p.grad is None for p in broken.model.parameters()), "the next step starts afresh"
    assert (broken.step, broken.recipe.updates, broken.recipe.skipped) == (3, 2, 1)

    # Under another loss scale fp16 rounds small gradients differently.
    broken.recipe = replace(broken.recipe, loss_scale=whole.recipe.loss_scale)
    ours, theirs = broken.train_step(rows(2, 4)), whole.train_step(rows(2, 4))
    assert ours.applied
    assert (ours.loss, ours.grad_norm, ours.learning_rate) == (theirs.loss, theirs.grad_norm, theirs.learning_rate)
    assert_same(tensors(broken), tensors(whole))
    assert (broken.recipe.updates, broken.recipe.skipped) == (3, 0)


def test_a_gradient_alone_that_is_infinite_skips_the_step() -> None:
    e = engine()
    steps(e, 0, 1)
    before = tensors(e)
    handle = e.model.embedding.register_hook(lambda gradient: gradient * float("inf"))
    result = e.train_step(rows(1, 4))
    handle.remove()
    assert not result.applied
    assert result.loss == pytest.approx(engine().evaluate(rows(1, 4)), abs=0.5)
    assert_same(tensors(e), before)
    assert e.train_step(rows(1, 4)).applied


def test_an_overflow_halves_the_scale_until_gradients_fit() -> None:
    e, plain = engine(precision="fp16", max_skipped_steps=40), engine(precision="fp16")
    # A new head is zero, and sends nothing back that could overflow.
    steps(e, 0, 1)
    steps(plain, 0, 1)
    e.recipe = replace(e.recipe, loss_scale=LossScale(2.0**40))
    before, scale = tensors(e), 2.0**40
    result = e.train_step(rows(1, 4))
    assert not result.applied
    while not result.applied:
        scale /= 2
        assert e.recipe.scale == scale
        assert math.isfinite(result.loss), "the loss itself is not scaled"
        assert_same(tensors(e), before)
        result = e.train_step(rows(1, 4))
    expected = plain.train_step(rows(1, 4))
    assert result.loss == expected.loss
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-2)
    assert e.recipe.loss_scale == LossScale(scale, 1)


@pytest.mark.parametrize("most", [0, 2])
def test_more_skipped_steps_in_a_row_than_allowed_end_the_run_at_a_named_step(most: int) -> None:
    e = engine(max_skipped_steps=most)
    with poisoned(e):
        skipped = [e.train_step(rows(step, 4)).applied for step in range(most)]
    steps(e, most, most + 1)
    before = tensors(e)
    with poisoned(e):
        skipped += [e.train_step(rows(step, 4)).applied for step in range(most)]
        with pytest.raises(TrainingDiverged) as caught:
            e.train_step(rows(9, 4))
    assert skipped == [False] * 2 * most
    after = ", after 2 skipped steps" if most else ""
    assert caught.value.detail.startswith(f"step {2 * most + 2}: the loss is nan and the gradient's norm nan{after};")
    assert (caught.value.code, caught.value.pointer) == ("training_diverged", "/training/learning_rate")
    assert_same(tensors(e), before)


# -- in the loop -----------------------------------------------------------------------------------------------------------


@dataclass
class Listener(Recorder):
    """Remembers every metric, and which steps it was told are skipped."""

    seen: dict[int, dict[str, float]] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        # What takes time, or is made of it, differs from run to run.
        same = {key: value for key, value in values.items() if "second" not in key and key != "mfu"}
        self.seen.setdefault(step, {}).update(same)
        super().metrics(step, values)

    def event(self, type: str, message: str, **data: Any) -> None:
        if type == "step_skipped":
            self.skipped.append(data["step"])
        super().event(type, message, **data)


def run(spec: TrainSpec, data: Path, directory: Path, hooks: Hooks | None = None, generation: int = 0) -> Listener:
    listener, store = Listener(), CheckpointStore(directory, asynchronous=False)
    try:
        train(spec, Membership(generation=generation), PackedDataset.open(data), store, listener, hooks=hooks)
    except InjectedFault:
        pass
    finally:
        store.close()
    return listener


def died_and_went_on(spec: TrainSpec, data: Path, directory: Path, before: int) -> Listener:
    """A run that was killed just before a step, and another one that went on from its newest checkpoint."""
    first = run(spec, data, directory, fail_at(0, before, ALONE))
    assert first.summary is None
    rest = run(spec, data, directory, generation=1)
    return Listener(
        seen=first.seen | rest.seen,
        skipped=sorted({*first.skipped, *rest.skipped}),
        loaded=rest.loaded,
        summary=rest.summary,
    )


def assert_same_run(broken: Listener, whole: Listener) -> None:
    assert broken.seen == whole.seen
    assert broken.skipped == whole.skipped
    assert broken.summary is not None
    assert whole.summary is not None
    for name in ("steps", "train_loss", "eval_loss", "one_token_context_loss", "samples"):
        assert getattr(broken.summary, name) == getattr(whole.summary, name)


@pytest.mark.parametrize("before", [4, 10], ids=["while steps are skipped", "after that"])
def test_a_run_in_fp16_with_skipped_steps_goes_on_exactly(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    monkeypatch.setattr("workers.recipe_state.INITIAL_SCALE", TOO_LARGE)
    monkeypatch.setattr("workers.recipe_state.GROWTH_INTERVAL", 2)
    spec = tiny_spec(precision="fp16", steps=12)
    whole = run(spec, tiny_data, tmp_path / "whole")
    # A new head is zero, and sends nothing back that could overflow.
    assert whole.skipped[:2] == [2, 3]
    broken = died_and_went_on(spec, tiny_data, tmp_path / "broken", before)
    assert broken.loaded == [before - 2]
    assert_same_run(broken, whole)
    scales = [values["loss_scale"] for values in whole.seen.values() if "loss_scale" in values]
    assert min(scales) < scales[0] / 4
    assert any(a < b for a, b in pairwise(scales)), "it rises again"


def test_a_last_step_that_was_skipped_does_not_hide_the_loss(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Engine.train_step

    def poisoned_last(self: Engine, *args: Any, **named: Any) -> Any:
        if self.step != 5:
            return step(self, *args, **named)
        with poisoned(self):
            return step(self, *args, **named)

    monkeypatch.setattr(Engine, "train_step", poisoned_last)
    listener = run(tiny_spec(), tiny_data, tmp_path)
    assert listener.skipped == [6]
    assert "loss" not in listener.seen[6]
    assert listener.summary is not None
    assert listener.summary.train_loss == listener.losses[5]
    assert listener.summary.eval_loss < 6.0


def test_adaptive_dropout_goes_on_exactly(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Scripted, so that the rate moves both ways within a few steps.
    held_out = {2: 3.0, 4: 3.5, 6: 3.6, 8: 2.9, 10: 3.0}
    monkeypatch.setattr("workers.loop.held_out_loss", lambda engine, dataset, **kind: held_out[engine.step])
    spec = tiny_spec(steps=10, eval_interval=2, adaptive_dropout={})
    whole = run(spec, tiny_data, tmp_path / "whole")
    rates = [whole.seen[step]["dropout"] for step in range(1, 11)]
    assert rates == [0.1, 0.1, 0.1, 0.1, 0.15, 0.15, 0.2, 0.2, 0.15, 0.15]
    for before in (5, 7):
        broken = died_and_went_on(spec, tiny_data, tmp_path / f"broken-{before}", before)
        assert broken.loaded == [before - 1]
        assert_same_run(broken, whole)


@pytest.mark.parametrize(
    "recipe",
    [{"final_betas": (0.8, 0.9)}, {"optimizer": "muon", "moments_dtype": "bf16"}],
    ids=["moving betas", "muon, adamw, all in bf16"],
)
def test_every_optimizer_goes_on_exactly(tiny_data: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    spec = tiny_spec(**recipe)
    whole = run(spec, tiny_data, tmp_path / "whole")
    assert_same_run(died_and_went_on(spec, tiny_data, tmp_path / "broken", 4), whole)

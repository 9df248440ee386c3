"""Compiled blocks: what changes from step to step compiles nothing anew, and the losses are the eager ones."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from data.dataset import Batch
from tests.workers.tiny import LENGTH, VOCAB, rows, run_steps, tiny_spec
from workers.engine import Engine
from workers.mesh import Membership
from workers.model import loss
from workers.recipe_state import Dropout
from workers.spec import TrainSpec

ALONE = Membership()
MODELS: dict[str, dict[str, Any]] = {
    "full": {"dropout": 0.1},
    "layered": {"attention_pattern": "layered", "sliding_window": 4, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1},
    "hierarchical": {"attention_pattern": "hierarchical", "hierarchical_block": 4, "hierarchical_slots": 2},
    "latent, segments": {"attention": "mla", "segment_length": 8, "memory_length": 8},
}


def spec_of(model: str, **training: Any) -> TrainSpec:
    spec = tiny_spec(**training)
    return spec.model_copy(update={"model": spec.model.model_validate({**spec.model.model_dump(), **MODELS[model]})})


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is traced, guarded and traced anew is as ever; no code is generated, which takes most of the time."""

    def compile_module(self: torch.nn.Module) -> None:
        self._compiled_call_impl = torch.compile(self._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_module)
    traced_loss = cache(lambda: torch.compile(loss._chunk_loss, dynamic=False, backend="eager"))
    monkeypatch.setattr(loss, "_compiled", traced_loss)
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def documents(*lengths: int) -> Callable[[int], list[Batch]]:
    """Micro-batches of one row of documents of these lengths."""
    ids = np.repeat(np.arange(len(lengths)), lengths)[None].astype(np.int32)
    positions = np.concatenate([np.arange(length) for length in lengths])[None].astype(np.int32)
    return lambda step: [Batch(b.tokens, ids, positions, b.samples) for b in rows(step, 4)]


LAYOUTS = [documents(12, 20), documents(32), documents(4, 4, 8, 16), documents(*[4] * 8), documents(28, 4)]


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("model", MODELS)
def test_the_layout_of_documents_compiles_nothing_anew(model: str) -> None:
    engine = Engine.build(spec_of(model, compile=True), ALONE, VOCAB)
    for step, layout in enumerate(LAYOUTS[:2]):
        engine.train_step(layout(step))
    warm = graphs()
    assert warm > 0
    for step, layout in enumerate(LAYOUTS[2:] + LAYOUTS, start=2):
        if engine.recipe.dropout.rate:
            engine.recipe = replace(engine.recipe, dropout=Dropout(0.01 * step))
        engine.train_step(layout(step))
    engine.train_step([*LAYOUTS[0](20)[:3], None])
    assert graphs() == warm
    engine.evaluate(LAYOUTS[0](0))
    evaluated = graphs()
    engine.evaluate(LAYOUTS[2](0))
    engine.train_step(LAYOUTS[3](1))
    engine.evaluate(LAYOUTS[0](0), one_token_context=True)
    for length in (5, 6, 9):
        assert engine.logits(torch.zeros(2, length, dtype=torch.long)).shape == (2, length, VOCAB)
    assert graphs() == evaluated, "what is read a few times, in lengths of its own, is not worth it"


def shorter(step: int, length: int) -> list[Batch]:
    """As many tokens in rows of another length, of two documents each."""
    whole = np.concatenate([b.tokens for b in rows(step, 4)]).reshape(4, -1, length)
    ids = np.repeat([0, 1], length // 2)[None].repeat(whole.shape[1], 0).astype(np.int32)
    positions = np.tile(np.arange(length // 2), 2)[None].repeat(whole.shape[1], 0).astype(np.int32)
    return [Batch(tokens, ids, positions) for tokens in whole]


@pytest.mark.usefixtures("traced_only")
def test_every_form_of_a_block_stays_compiled_while_rows_get_longer() -> None:
    spec = spec_of("layered", compile=True)
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"num_nextn_predict_layers": 0})})
    engine = Engine.build(spec, ALONE, VOCAB)
    for step, length in enumerate((8, 16, LENGTH)):
        engine.train_step(shorter(step, length)[:1])
        engine.train_step(LAYOUTS[1](step)[:1])
        engine.evaluate(LAYOUTS[step](step)[:1])
    # Beside the loss's two, more than torch keeps of one function unless told so. One too many fails here.
    assert graphs() > 8 + 2


def test_compiled_losses_are_the_eager_ones() -> None:
    spec = tiny_spec()
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"num_hidden_layers": 1})})
    eager, state = run_steps(ALONE, spec, 0, 3, None)
    compiled_spec = spec.model_copy(update={"training": spec.training.model_copy(update={"compile": True})})
    compiled, compiled_state = run_steps(ALONE, compiled_spec, 0, 3, None)
    for ours, theirs in zip(compiled, eager, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert compiled_state["model"].keys() == state["model"].keys(), "names ignore compilation"

"""The engine on a CUDA device. Skipped where there is none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.workers.test_compile import LAYOUTS, graphs
from tests.workers.tiny import VOCAB, rows, run_steps, steps, tiny_spec
from workers.engine import Engine
from workers.mesh import Membership
from workers.recipe_state import LossScale
from workers.spec import TrainSpec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

ALONE = Membership()


def on_gpu(**training: object) -> TrainSpec:
    spec = tiny_spec(**training)
    return spec.model_copy(update={"gpu_config": spec.gpu_config.model_copy(update={"gpus_per_node": 1})})


def with_dropout(spec: TrainSpec) -> TrainSpec:
    return spec.model_copy(update={"model": spec.model.model_copy(update={"dropout": 0.2})})


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 2e-2), ("fp16", 2e-2)])
def test_losses_are_the_cpus(precision: str, tolerance: float) -> None:
    gpu, _ = run_steps(ALONE, on_gpu(precision=precision), 0, 6, None)
    cpu, _ = run_steps(ALONE, tiny_spec(precision=precision), 0, 6, None)
    assert [loss for loss, _ in gpu] == pytest.approx([loss for loss, _ in cpu], rel=tolerance)


def test_dropout_drops_what_it_drops_on_the_cpu() -> None:
    gpu, _ = run_steps(ALONE, with_dropout(on_gpu()), 0, 6, None)
    cpu, _ = run_steps(ALONE, with_dropout(tiny_spec()), 0, 6, None)
    assert [loss for loss, _ in gpu] == pytest.approx([loss for loss, _ in cpu], rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_in_bf16_are_rounded_as_on_the_cpu(optimizer: str) -> None:
    recipe = {"optimizer": optimizer, "moments_dtype": "bf16"}
    gpu, _ = run_steps(ALONE, on_gpu(**recipe), 0, 6, None)
    cpu, _ = run_steps(ALONE, tiny_spec(**recipe), 0, 6, None)
    assert [loss for loss, _ in gpu] == pytest.approx([loss for loss, _ in cpu], rel=1e-3)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_what_is_computed_again_trains_the_same(mode: str) -> None:
    plain, _ = run_steps(ALONE, with_dropout(on_gpu(precision="bf16")), 0, 4, None)
    again, _ = run_steps(ALONE, with_dropout(on_gpu(precision="bf16", activation_checkpointing=mode)), 0, 4, None)
    assert [loss for loss, _ in again] == pytest.approx([loss for loss, _ in plain], rel=2e-3)


def test_an_overflow_in_fp16_skips_the_step_and_halves_the_scale() -> None:
    engine = Engine.build(on_gpu(precision="fp16", max_skipped_steps=40), ALONE, VOCAB)
    # A new head is zero, and sends nothing back that could overflow.
    steps(engine, 0, 1)
    engine.recipe = replace(engine.recipe, loss_scale=LossScale(2.0**40))
    before = engine.full_state()["model"]
    result = engine.train_step(rows(1, 4))
    assert not result.applied
    assert engine.recipe.scale == 2.0**39
    after = engine.full_state()["model"]
    assert all(torch.equal(after[name], before[name]) for name in before)
    while not result.applied:
        result = engine.train_step(rows(1, 4))
    assert engine.recipe.scale < 2.0**39
    engine.teardown()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_blocks_train_the_same(precision: str) -> None:
    plain, _ = run_steps(ALONE, on_gpu(precision=precision), 0, 4, None)
    compiled, _ = run_steps(ALONE, on_gpu(precision=precision, compile=True), 0, 4, None)
    tolerance = {"fp32": 1e-3, "bf16": 2e-2}[precision]
    assert [loss for loss, _ in compiled] == pytest.approx([loss for loss, _ in plain], rel=tolerance)


def test_the_layout_of_documents_compiles_nothing_anew() -> None:
    torch._dynamo.reset()
    engine = Engine.build(on_gpu(precision="bf16", compile=True), ALONE, VOCAB)
    # Of two lengths of the list of documents' starts the second makes it dynamic.
    for step, layout in enumerate(LAYOUTS[:3]):
        engine.train_step(layout(step))
    warm = graphs()
    assert warm > 0
    for step, layout in enumerate(LAYOUTS, start=3):
        engine.train_step(layout(step))
    assert graphs() == warm
    engine.teardown()


def test_state_moves_between_cpu_and_gpu(tmp_path: Path) -> None:
    first, state = run_steps(ALONE, on_gpu(), 0, 3, None)
    second, _ = run_steps(ALONE, tiny_spec(), 3, 6, state)
    straight, _ = run_steps(ALONE, tiny_spec(), 0, 6, None)
    assert [loss for loss, _ in first + second] == pytest.approx([loss for loss, _ in straight], rel=1e-3)


def test_the_device_is_the_one_asked_for() -> None:
    engine = Engine.build(on_gpu(), ALONE, VOCAB)
    assert {p.device.type for p in engine.model.parameters()} == {"cuda"}
    engine.teardown()

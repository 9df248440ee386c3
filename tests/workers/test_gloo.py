"""Two processes: the same run as one, again and again, without torch's default group."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from data.dataset import Batch, PackedDataset
from data.manifest import Split
from data.order import SampleOrder
from data.tokenizer import Tokenizer
from tests.workers.conftest import GlooPool
from tests.workers.tiny import VOCAB, Recorder, fail_at, rows, run_steps, run_training, steps, tiny_spec
from workers.attempt import Desired
from workers.checkpoint import CheckpointStore
from workers.engine import Engine, TrainingDiverged
from workers.loop import CheckpointMissing, Hooks, _Run, train
from workers.mesh import Membership, Mesh, deal
from workers.model.spec import ModelSpec
from workers.optim import local
from workers.spec import TrainSpec

pytestmark = pytest.mark.gloo

TOLERANCE = 1e-4
"""Relative difference of losses and norms between meshes after six steps in fp32: only the order of sums differs."""


@pytest.mark.parametrize("micro_batches", [4, 3], ids=["even", "one rank has a micro-batch less"])
def test_two_ranks_train_as_one(gloo_pool: GlooPool, micro_batches: int) -> None:
    spec = tiny_spec()
    (two, state), (same, _) = gloo_pool.run(run_steps, spec, 0, 6, None, micro_batches)
    one, expected = run_steps(Membership(), spec, 0, 6, None, micro_batches)
    assert two == same, "every rank knows the same figures"
    for a, b in zip(two, one, strict=True):
        assert a == pytest.approx(b, rel=TOLERANCE)
    for name, value in state["model"].items():
        torch.testing.assert_close(value, expected["model"][name], rtol=1e-2, atol=2e-4)


def changed(model: dict[str, Any], **training: Any) -> TrainSpec:
    spec = tiny_spec(**training)
    return spec.model_copy(update={"model": ModelSpec.model_validate({**spec.model.model_dump(), **model})})


LATENT = {
    "attention": "mla",
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
BALANCED = {"router_aux_loss_coef": 0.01, "router_z_loss_coef": 0.001, "num_nextn_predict_layers": 1}
ON_TWO_RANKS = {
    "dropout": changed({"dropout": 0.2}),
    "dropout, recomputed": changed({"dropout": 0.2}, activation_checkpointing="full"),
    "muon": tiny_spec(optimizer="muon"),
    "bf16 moments": tiny_spec(moments_dtype="bf16"),
    "smoothed and focused": tiny_spec(label_smoothing=0.1, focal_gamma=1.0),
    "latents, auxiliary losses, further tokens, a dense layer": changed({**LATENT, **BALANCED, "first_k_dense_replace": 1}),
}


@pytest.mark.parametrize("recipe", ON_TWO_RANKS)
def test_every_recipe_trains_on_two_ranks_as_on_one(gloo_pool: GlooPool, recipe: str) -> None:
    spec = ON_TWO_RANKS[recipe]
    (two, _), (same, _) = gloo_pool.run(run_steps, spec, 0, 5, None, 3)
    one, _ = run_steps(Membership(), spec, 0, 5, None, 3)
    assert two == same
    for a, b in zip(two, one, strict=True):
        assert a == pytest.approx(b, rel=TOLERANCE)


def test_fp16_on_two_ranks_stays_near_one(gloo_pool: GlooPool) -> None:
    spec = tiny_spec(precision="fp16")
    (two, state), _ = gloo_pool.run(run_steps, spec, 0, 6, None)
    one, expected = run_steps(Membership(), spec, 0, 6, None)
    assert [loss for loss, _ in two] == pytest.approx([loss for loss, _ in one], rel=5e-3)
    assert state["recipe"] == expected["recipe"]


def as_a_large_model(member: Membership, spec: TrainSpec) -> list[tuple[float, float]]:
    """Gathered block by block, and gradients summed over the ranks after every micro-batch."""
    engine = Engine.build(spec, member, VOCAB)
    engine.keeps_gathered = False
    figures = steps(engine, 0, 4)
    engine.teardown()
    return figures


def test_a_model_too_large_to_gather_trains_as_one_that_is_not(gloo_pool: GlooPool) -> None:
    spec = tiny_spec()
    straight, _ = run_steps(Membership(), spec, 0, 4, None)
    for a, b in zip(gloo_pool.run(as_a_large_model, spec)[0], straight, strict=True):
        assert a == pytest.approx(b, rel=TOLERANCE)


def test_the_same_mesh_gives_the_same_bits(gloo_pool: GlooPool) -> None:
    assert gloo_pool.run(run_steps, tiny_spec(), 0, 4, None)[0][0] == gloo_pool.run(run_steps, tiny_spec(), 0, 4, None)[0][0]


def test_two_ranks_then_one_then_two_in_surviving_processes(gloo_pool: GlooPool) -> None:
    spec = tiny_spec()
    (first, state), _ = gloo_pool.run(run_steps, spec, 0, 2, None)
    ((second, state),) = gloo_pool.run(run_steps, spec, 2, 4, state, world_size=1)
    (third, _), _ = gloo_pool.run(run_steps, spec, 4, 6, state)
    straight, _ = run_steps(Membership(), spec, 0, 6, None)
    for a, b in zip(first + second + third, straight, strict=True):
        assert a == pytest.approx(b, rel=TOLERANCE)


def evaluate_between_steps(member: Membership, spec: TrainSpec) -> tuple[list[float], float, int]:
    engine = Engine.build(spec, member, VOCAB)
    figures = steps(engine, 0, 1)
    held_out = engine.evaluate(deal(rows(9, 4), member.rank, member.world_size))
    cursor = engine.full_state()["cursor"]
    figures += steps(engine, 1, 2)
    engine.teardown()
    return [loss for loss, _ in figures], held_out, cursor


def test_the_state_can_be_taken_after_an_evaluation_and_training_goes_on(gloo_pool: GlooPool) -> None:
    (losses, held_out, cursor), same = gloo_pool.run(evaluate_between_steps, tiny_spec())
    assert (losses, held_out, cursor) == same
    alone, expected, _ = evaluate_between_steps(Membership(), tiny_spec())
    assert (losses, cursor) == (pytest.approx(alone, rel=TOLERANCE), 1)
    assert held_out == pytest.approx(expected, rel=TOLERANCE)


def test_bf16_on_two_ranks_stays_near_one(gloo_pool: GlooPool) -> None:
    spec = tiny_spec(precision="bf16")
    (two, state), _ = gloo_pool.run(run_steps, spec, 0, 6, None)
    one, _ = run_steps(Membership(), spec, 0, 6, None)
    assert [loss for loss, _ in two] == pytest.approx([loss for loss, _ in one], rel=5e-3)
    assert {value.dtype for value in state["model"].values()} == {torch.float32}


def diverge(member: Membership, spec: TrainSpec) -> str:
    """NaN on rank 1 alone: both ranks must learn of it in the same step."""
    engine = Engine.build(spec, member, VOCAB)
    steps(engine, 0, 1)
    mine = deal(rows(1, 4), member.rank, member.world_size)
    if member.rank == 1:
        with torch.no_grad():
            for block in engine.model.blocks:
                block.attention_norm.weight.to_local().fill_(float("nan"))
    try:
        engine.train_step(mine)
    except TrainingDiverged as error:
        return error.detail
    finally:
        engine.teardown()
    return "nothing was raised"


def test_divergence_on_one_rank_stops_all_and_names_the_step(gloo_pool: GlooPool) -> None:
    assert all(
        detail.startswith("step 2: the loss is nan") for detail in gloo_pool.run(diverge, tiny_spec(max_skipped_steps=0))
    )


def skip_where_rank_1_overflows(member: Membership, spec: TrainSpec) -> list[tuple[bool, float, int]]:
    """One gradient on rank 1 is infinite in the second step: was each step applied, at what scale, after how many updates?"""
    engine = Engine.build(spec, member, VOCAB)
    seen = []
    for step in range(3):
        mine = deal(rows(step, 4), member.rank, member.world_size)
        poison = float("inf") if (step, member.rank) == (1, 1) else 1.0
        handle = engine.model.norm.register_full_backward_hook(lambda module, before, after, by=poison: (before[0] * by,))
        result = engine.train_step(mine)
        handle.remove()
        seen.append((result.applied, engine.recipe.scale, engine.recipe.updates))
    finite = all(bool(local(p).isfinite().all()) for p in engine.model.parameters())
    engine.teardown()
    assert finite
    return seen


@pytest.mark.parametrize(("precision", "scales"), [("fp16", [2.0**16, 2.0**15, 2.0**15]), ("bf16", [1.0, 1.0, 1.0])])
def test_an_overflow_on_one_rank_skips_the_step_on_all(gloo_pool: GlooPool, precision: str, scales: list[float]) -> None:
    expected = list(zip([True, False, True], scales, [1, 1, 2], strict=True))
    assert gloo_pool.run(skip_where_rank_1_overflows, tiny_spec(precision=precision)) == [expected, expected]


def test_train_on_two_ranks_dies_and_goes_on_exactly(gloo_pool: GlooPool, tiny_data: Path, tmp_path: Path) -> None:
    (outcome, whole), _ = gloo_pool.run(run_training, tiny_spec(), tiny_data, tmp_path / "whole")
    gloo_pool.run(train_until_fault, tiny_spec(), tiny_data, tmp_path / "broken", 4)
    (again, rest), _ = gloo_pool.run(run_training, tiny_spec(), tiny_data, tmp_path / "broken")
    assert rest.beats[0] == 3
    assert rest.losses == {step: loss for step, loss in whole.losses.items() if step >= 3}
    assert (again.summary.eval_loss, again.summary.samples) == (outcome.summary.eval_loss, outcome.summary.samples)


def train_until_fault(member: Membership, spec: TrainSpec, data: Path, directory: Path, step: int) -> None:
    """Both ranks fail before ``step``: a lone survivor would wait for its collective's timeout."""
    with pytest.raises(Exception, match=f"rank {member.rank} at step {step}"):
        run_training(member, spec, data, directory, hooks=fail_at(member.rank, step, member))


def test_a_checkpoint_of_two_ranks_is_resumed_by_one(gloo_pool: GlooPool, tiny_data: Path, tmp_path: Path) -> None:
    (_, whole), _ = gloo_pool.run(run_training, tiny_spec(), tiny_data, tmp_path / "whole")
    gloo_pool.run(run_training, tiny_spec(), tiny_data, tmp_path / "paused", {2: Desired.PAUSED})
    outcome, rest = run_training(Membership(generation=99), tiny_spec(), tiny_data, tmp_path / "paused")
    assert outcome.kind == "succeeded"
    assert list(rest.losses) == [4, 5, 6]
    for step, loss in rest.losses.items():
        assert loss == pytest.approx(whole.losses[step], rel=TOLERANCE)


def test_evaluations_on_the_way_leave_the_losses_as_they_are(gloo_pool: GlooPool, tiny_data: Path, tmp_path: Path) -> None:
    (_, plain), _ = gloo_pool.run(run_training, tiny_spec(), tiny_data, tmp_path / "plain")
    (_, evaluated), _ = gloo_pool.run(run_training, tiny_spec(eval_interval=1), tiny_data, tmp_path / "evaluated")
    assert list(evaluated.held_out) == [1, 2, 3, 4, 5, 6]
    assert evaluated.losses == plain.losses


def chosen(member: Membership, spec: TrainSpec, data: Path, directories: list[Path]) -> int | str | None:
    """The step of the checkpoint that this rank loads, or why it loads none."""
    engine, recorder = Engine.build(spec, member, VOCAB), Recorder()
    dataset, store = PackedDataset.open(data), CheckpointStore(directories[member.rank])
    run = _Run(spec, member, dataset, Tokenizer.load(dataset.tokenizer_path), store, recorder, Hooks(), engine)
    try:
        run.resume()
    except CheckpointMissing as error:
        return error.detail
    finally:
        store.close()
        engine.teardown()
    return recorder.loaded[0] if recorder.loaded == [engine.step] else None


def test_all_ranks_load_the_checkpoint_that_rank_0_chooses(gloo_pool: GlooPool, tiny_data: Path, tmp_path: Path) -> None:
    gloo_pool.run(run_training, tiny_spec(), tiny_data, tmp_path / "run")
    # Whatever rank 1 would choose: rank 0 sees one checkpoint only, rank 1 a newer one as well.
    shutil.copytree(tmp_path / "run" / "step-00000004", tmp_path / "older" / "step-00000004")
    older = gloo_pool.run(chosen, tiny_spec(), tiny_data, [tmp_path / "older", tmp_path / "run"])
    assert older == [4, 4]
    newer = gloo_pool.run(chosen, tiny_spec(), tiny_data, [tmp_path / "run", tmp_path / "older"])
    assert newer[0] == 6
    assert re.match("rank 1 on .* does not see the checkpoint of step 6", newer[1])


@pytest.mark.parametrize(("wish", "kind"), [(Desired.PAUSED, "paused"), (Desired.CANCELLED, "cancelled")])
def test_rank_0_hears_the_wish_and_both_stop_at_one_step(
    gloo_pool: GlooPool, tiny_data: Path, tmp_path: Path, wish: Desired, kind: str
) -> None:
    answers = gloo_pool.run(stop_when_rank_0_hears, tiny_spec(), tiny_data, tmp_path, wish)
    assert answers == [(kind, 3), (kind, 3)]


def stop_when_rank_0_hears(member: Membership, spec: TrainSpec, data: Path, directory: Path, wish: Desired) -> tuple[str, int]:
    outcome, _ = run_training(member, spec, data, directory, {2: wish} if member.rank == 0 else {})
    return outcome.kind, outcome.step


def recorded_rows(
    member: Membership, spec: TrainSpec, data: Path, directory: Path, stop: int
) -> tuple[dict[int, list[int]], Any]:
    """Train on to step ``stop``: the training rows that this rank read for each step, and the losses."""
    read: list[int] = []

    class Recorded(PackedDataset):
        def rows(self, split: Split, indices: Sequence[int], samples: Sequence[int] = ()) -> Batch:
            read.extend(indices if split == "train" else [])
            return super().rows(split, indices, samples)

    store, recorder = CheckpointStore(directory), Recorder()
    first = max([each.step for each in store.committed()], default=0)
    recorder.wishes = {stop - first - 1: Desired.PAUSED}
    train(spec, member, Recorded.open(data), store, recorder)
    store.close()
    share = spec.training.global_batch_size // member.world_size
    # The thread that reads ahead may have read rows of the step after the last.
    return {step: read[(step - first - 1) * share :][:share] for step in recorder.beats}, recorder.losses


def test_two_ranks_then_one_then_two_read_the_same_chain_of_rows(gloo_pool: GlooPool, tiny_data: Path, tmp_path: Path) -> None:
    spec = tiny_spec()
    order = SampleOrder(PackedDataset.open(tiny_data).manifest, spec.training.seed, spec.training.global_batch_size)
    _, straight = run_training(Membership(), spec, tiny_data, tmp_path / "straight")
    trained = []
    for world_size, stop in ((2, 2), (1, 4), (2, 6)):
        ranks = gloo_pool.run(recorded_rows, spec, tiny_data, tmp_path / "elastic", stop, world_size=world_size)
        for step, loss in ranks[0][1].items():
            trained.append(step)
            assert [row for read, _ in ranks for row in read[step]] == order.batch(step - 1)
            assert loss == pytest.approx(straight.losses[step], rel=TOLERANCE)
    assert trained == [1, 2, 3, 4, 5, 6]


def form_and_gather(member: Membership) -> tuple[bool, list[int], list[float]]:
    mesh = Mesh.form(member, use_gpu=False)
    assert mesh.group is not None
    assert mesh.workers is not None
    ranks = [torch.zeros(1) for _ in range(member.world_size)]
    dist.all_gather(ranks, torch.tensor([float(member.rank)]), group=mesh.group)
    coordinate = mesh.workers.get_coordinate()
    assert coordinate is not None
    mesh.dissolve()
    return dist.is_initialized(), list(coordinate), [float(r) for r in ranks]


def test_private_interfaces_make_groups_and_meshes_without_a_default_group(gloo_pool: GlooPool) -> None:
    """``workers.compat_torch`` is all of the private torch that the engine stands on."""
    for _ in range(2):
        assert gloo_pool.run(form_and_gather) == [(False, [0], [0.0, 1.0]), (False, [1], [0.0, 1.0])]

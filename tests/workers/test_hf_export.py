"""From a run's checkpoint to what ``from_pretrained`` loads, and back into a run, without Ray."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_pb2
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.dataset import PackedDataset
from data.spec import TokenizerSpec
from data.steps import StepOrder
from data.tokenizer import Tokenizer, train_tokenizer
from tests.workers.tiny import run_training, tiny_spec
from workers.attempt import Desired
from workers.checkpoint import CheckpointStore
from workers.engine import Engine
from workers.hf.errors import (
    CheckpointUnreadable,
    JobUnreadable,
    NotExportable,
    OutputExists,
    PretrainedMismatch,
    TokenizerMismatch,
)
from workers.hf.export import CheckpointWeights, export, main, read_model
from workers.hf.files import INDEX, TensorFiles, write_tensors
from workers.hf.load import initial_state, load_pretrained
from workers.mesh import Membership
from workers.model.spec import ModelSpec
from workers.spec import TrainSpec


class Run:
    """Two steps of a tiny model with a dense layer, balanced experts and a further predictor."""

    def __init__(self, data: Path, directory: Path) -> None:
        spec = tiny_spec(steps=2)
        changes = {"num_hidden_layers": 3, "first_k_dense_replace": 1, "qk_norm": "head", "num_nextn_predict_layers": 1}
        changes |= {"router_bias_update_rate": 0.1, "partial_rotary_factor": 0.5}
        self.spec = spec.model_copy(update={"model": spec.model.model_copy(update=changes)})
        self.tokenizer = PackedDataset.open(data).tokenizer_path
        outcome, _ = run_training(Membership(), self.spec, data, directory)
        assert outcome.kind == "succeeded"
        self.checkpoint = directory / "step-00000002"

    def export(self, output: Path, **options: Any) -> dict[str, Any]:
        return export(self.checkpoint, self.spec.model, self.tokenizer, output, **options)

    def engine(self) -> Engine:
        """As the checkpoint left it."""
        engine = Engine.build(self.spec, Membership(), Tokenizer.load(self.tokenizer).vocab_size)
        engine.model.load_state_dict(dict(CheckpointWeights(self.checkpoint)))
        return engine


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tiny_data, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("export") / "model"
    run.export(output)
    return output


def loaded(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    model, told = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, output_loading_info=True)
    assert not any(told.values()), told
    return model.eval()


@torch.no_grad()
def test_an_export_has_the_logits_and_the_tokens_of_the_run(run: Run, exported: Path) -> None:
    model, tokenizer = loaded(exported), AutoTokenizer.from_pretrained(exported)
    text = "the old cat sees a red house and hears  the dog."
    ids = tokenizer(text, return_tensors="pt").input_ids
    ours = Tokenizer.load(run.tokenizer)
    assert ids.tolist() == [[ours.bos_id, *ours.encode(text)]]
    engine = run.engine()
    expected = engine.logits(ids)
    engine.teardown()
    assert expected.std() > 0
    assert (model(ids).logits - expected).abs().max() < 1e-4
    biases = [value for name, value in model.named_buffers() if name.endswith("e_score_correction_bias")]
    assert len(biases) == 2
    assert any(bias.any() for bias in biases)
    marks = model.generation_config
    assert (marks.bos_token_id, marks.eos_token_id) == (ours.bos_id, ours.eos_id)


def test_an_export_says_what_it_is(run: Run, tmp_path: Path) -> None:
    said = run.export(tmp_path / "out")
    parameters = sum(p.numel() for p in loaded(tmp_path / "out").parameters())
    assert said == {
        "output": str(tmp_path / "out"),
        "step": 2,
        "family": "Glm4MoeForCausalLM",
        "parameters": parameters,
        "bytes": 4 * (parameters + 2 * run.spec.model.n_routed_experts),
        "dtype": "fp32",
        "notes": ["modules of multi-token prediction (1) are left out: they only help training"],
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    ]


def test_an_export_in_bf16_is_rounded_but_for_the_balancing_bias(run: Run, exported: Path, tmp_path: Path) -> None:
    run.export(tmp_path / "out", dtype="bf16")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    whole, rounded = TensorFiles(exported), TensorFiles(tmp_path / "out")
    assert whole.keys() == rounded.keys()
    for name, tensor in rounded.items():
        kept = name.endswith("e_score_correction_bias")
        assert torch.equal(tensor, whole[name] if kept else whole[name].bfloat16())
    assert loaded(tmp_path / "out", torch.bfloat16).lm_head.weight.dtype == torch.bfloat16


def test_large_models_are_spread_over_files(run: Run, exported: Path, tmp_path: Path) -> None:
    tensors = TensorFiles(exported)
    shapes = {name: torch.Size(tensors.shape(name)) for name in tensors}
    assert write_tensors(tmp_path, tensors.items(), shapes, torch.float32, file_bytes=70_000) == sum(
        tensor.nbytes for tensor in tensors.values()
    )
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert all(sum(tensor.nbytes for tensor in load_file(file).values()) <= 70_000 for file in files)
    assert (tmp_path / INDEX).is_file()
    (tmp_path / "config.json").write_text((exported / "config.json").read_text())
    again = loaded(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in loaded(exported).state_dict().items())


def test_a_stream_that_does_not_hold_what_was_announced_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"head .* comes where norm"):
        write_tensors(tmp_path, [("head", torch.zeros(2))], {"norm": torch.Size([2])}, torch.float32)


def test_the_first_weights_of_a_run_are_the_exported_ones(run: Run, exported: Path) -> None:
    spec = run.spec.model_copy(update={"init_from": str(exported)})
    tokenizer = Tokenizer.load(run.tokenizer)
    assert initial_state(run.spec, tokenizer) is None
    state = initial_state(spec, tokenizer)
    assert state is not None
    checkpoint = {name: x for name, x in CheckpointWeights(run.checkpoint).items() if not name.startswith("predictors.")}
    assert state.keys() == checkpoint.keys()
    assert all(torch.equal(tensor, checkpoint[name]) for name, tensor in state.items())
    # A model for longer contexts, in which attention sees less: the weights are the same ones.
    stretched = {"rope_scaling": {"factor": 4, "original_max_position_embeddings": 32}, "attention_pattern": "sliding"}
    longer = type(run.spec.model).model_validate({**run.spec.model.model_dump(), **stretched, "max_position_embeddings": 512})
    assert load_pretrained(exported, longer, tokenizer.vocab_size).keys() == checkpoint.keys()


def test_another_tokenizer_of_the_same_size_is_refused(run: Run, exported: Path) -> None:
    model = sentencepiece_pb2.ModelProto.FromString(run.tokenizer.read_bytes())
    model.pieces[270].piece += "x"
    spec = run.spec.model_copy(update={"init_from": str(exported)})
    with pytest.raises(
        PretrainedMismatch, match=r": 1 of \d+ pieces differ, the first is 270, .*; set tokenizer.path to .*\.model"
    ):
        initial_state(spec, Tokenizer(model.SerializeToString()))


def test_the_first_loss_of_such_a_run_is_that_of_the_exported_model(
    run: Run, exported: Path, tiny_data: Path, tmp_path: Path
) -> None:
    spec = run.spec.model_copy(update={"init_from": str(exported)})
    _, recorder = run_training(Membership(), spec, tiny_data, tmp_path)
    dataset, model = PackedDataset.open(tiny_data), loaded(exported)
    losses = []
    for part in StepOrder(dataset.manifest, spec.training.seed, spec.curriculum).micro_batches(0):
        batch = dataset.rows("train", *part)
        for row, documents in zip(torch.from_numpy(batch.tokens).long(), torch.from_numpy(batch.document_ids), strict=True):
            for document in range(int(documents.max()) + 1):
                tokens = row[documents == document]
                logits = model(tokens[None]).logits[0].detach()
                losses.append(cross_entropy(logits[:-1], tokens[1:], reduction="none"))
    assert recorder.losses[1] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-4)
    assert recorder.losses[1] < 0.99 * first_loss_from_scratch(run, tiny_data, tmp_path / "scratch")


def first_loss_from_scratch(run: Run, data: Path, directory: Path) -> float:
    _, recorder = run_training(Membership(), run.spec, data, directory)
    return recorder.losses[1]


def test_a_run_that_was_stopped_goes_on_from_its_own_checkpoint(
    run: Run, exported: Path, tiny_data: Path, tmp_path: Path
) -> None:
    spec = run.spec.model_copy(update={"init_from": str(exported)})
    outcome, recorder = run_training(Membership(), spec, tiny_data, tmp_path, wishes={0: Desired.PAUSED})
    assert (outcome.kind, outcome.step) == ("paused", 1)
    outcome, again = run_training(Membership(), spec, tiny_data, tmp_path)
    _, whole = run_training(Membership(), spec, tiny_data, tmp_path / "whole")
    assert again.loaded == [1]
    assert {**recorder.losses, **again.losses} == whole.losses


@pytest.mark.gloo
def test_ranks_that_share_the_weights_begin_as_one_rank_does(
    run: Run, exported: Path, tiny_data: Path, tmp_path: Path, gloo_pool: Any
) -> None:
    spec = run.spec.model_copy(update={"init_from": str(exported)})
    _, alone = run_training(Membership(), spec, tiny_data, tmp_path / "one")
    (_, together), _ = gloo_pool.run(run_training, spec, tiny_data, tmp_path / "two")
    assert together.losses[1] == pytest.approx(alone.losses[1], abs=1e-5)


def test_an_export_takes_the_place_of_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run.export(tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with pytest.raises(OutputExists, match="there already"):
        run.export(tmp_path / "out")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def torn(run: Run) -> tuple[Path, TrainSpec]:
    file = next(run.checkpoint.glob("__0_0.distcp"))
    file.write_bytes(file.read_bytes()[:-100])
    return run.checkpoint, run.spec


def uncommitted(run: Run) -> tuple[Path, TrainSpec]:
    (run.checkpoint / "manifest.json").unlink()
    return run.checkpoint, run.spec


def of_another_model(run: Run) -> tuple[Path, TrainSpec]:
    return run.checkpoint, run.spec.model_copy(update={"model": run.spec.model.model_copy(update={"num_hidden_layers": 2})})


def of_another_width(run: Run) -> tuple[Path, TrainSpec]:
    return run.checkpoint, run.spec.model_copy(update={"model": run.spec.model.model_copy(update={"head_dim": 4})})


def without_model(run: Run) -> tuple[Path, TrainSpec]:
    store = CheckpointStore(run.checkpoint.parent / "other", asynchronous=False)
    store.save(1, {"cursor": 1})
    store.close()
    return run.checkpoint.parent / "other" / "step-00000001", run.spec


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (torn, "is torn"),
        (uncommitted, "no committed checkpoint"),
        (without_model, "holds no model"),
        (of_another_model, "not of this job's model"),
        (of_another_width, "not of this job's model"),
    ],
)
def test_a_checkpoint_that_cannot_be_exported_leaves_nothing(
    spoil: Callable[[Run], tuple[Path, TrainSpec]], message: str, run: Run, tmp_path: Path
) -> None:
    copied = object.__new__(Run)
    copied.__dict__ |= vars(run) | {"checkpoint": tmp_path / run.checkpoint.name}
    copied.checkpoint.mkdir()
    for file in run.checkpoint.iterdir():
        (copied.checkpoint / file.name).write_bytes(file.read_bytes())
    checkpoint, spec = spoil(copied)
    with pytest.raises(CheckpointUnreadable, match=message):
        export(checkpoint, spec.model, run.tokenizer, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_fault_while_writing_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("workers.hf.export.write_tensors", full)
    with pytest.raises(OSError, match="No space"):
        run.export(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_no_class_computes_is_not_exported(run: Run, tmp_path: Path) -> None:
    spec = run.spec.model.model_copy(update={"attention_pattern": "sliding"})
    with pytest.raises(NotExportable, match="attention_pattern sliding"):
        export(run.checkpoint, spec, run.tokenizer, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_another_vocabulary_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "other.model").write_bytes(train_tokenizer(["the old cat"], TokenizerSpec(vocab_size=300)))
    other, own = (Tokenizer.load(path).vocab_size for path in (tmp_path / "other.model", run.tokenizer))
    with pytest.raises(TokenizerMismatch, match=rf"other\.model has {other} pieces, the model of .* {own}; give the one"):
        export(run.checkpoint, run.spec.model, tmp_path / "other.model", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["other.model"]


def test_the_module_says_what_it_made_and_what_was_wrong_as_json(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.json"
    job.write_text(run.spec.model_dump_json())
    command = [str(run.checkpoint), "--spec", str(job), "--tokenizer", str(run.tokenizer), "--output", str(tmp_path / "out")]
    assert main(command) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["step"], made["family"], made["output"]) == (2, "Glm4MoeForCausalLM", str(tmp_path / "out"))
    assert main(command) == 1
    refused = json.loads(capsys.readouterr().out)
    assert (refused["code"], refused["status"], refused["pointer"]) == ("output_exists", 409, None)


@pytest.mark.parametrize(
    ("text", "message", "pointer"),
    [
        (None, "No such file", None),
        ("[", "is no job file", None),
        ("just words", "is no job file", None),
        ("model: {hidden_size: wide}", "valid integer", "/model/hidden_size"),
    ],
)
def test_a_job_file_that_is_none_says_why(text: str | None, message: str, pointer: str | None, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(JobUnreadable, match=message) as caught:
        read_model(path)
    assert caught.value.pointer == pointer


def test_a_job_file_may_leave_the_model_out(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("{name: plain}")
    assert read_model(tmp_path / "job.yaml") == ModelSpec()

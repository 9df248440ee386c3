"""Directories that a run cannot begin with: each says what is wrong and what would be right."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.spec import TokenizerSpec
from data.tokenizer import Tokenizer, train_tokenizer
from workers.hf.convert import to_hf
from workers.hf.directory import CONFIG, require_model
from workers.hf.errors import PretrainedMismatch, PretrainedUnreadable
from workers.hf.files import INDEX, ONE_FILE, write_json, write_tensors
from workers.hf.load import load_pretrained
from workers.hf.rules import rules
from workers.model.spec import ModelSpec

VOCAB = 64
SPEC = ModelSpec(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, first_k_dense_replace=1, moe_intermediate_size=16)
GATE = "model.layers.1.mlp.gate.weight"
LAST = "lm_head.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A whole one."""
    draw = torch.Generator().manual_seed(0)
    state = {str(rule.name): torch.randn(rule.shape, generator=draw) for rule in rules(SPEC, VOCAB, "glm4_moe")}
    config, tensors = to_hf(SPEC, VOCAB, state)
    out = tmp_path / "model"
    out.mkdir()
    write_json(out / CONFIG, config)
    write_tensors(out, tensors.items(), {name: x.shape for name, x in tensors.items()}, torch.float32)
    return out


def read_all(directory: Path, model: ModelSpec = SPEC, vocab_size: int = VOCAB) -> dict[str, torch.Tensor]:
    return dict(load_pretrained(directory, model, vocab_size))


def test_a_whole_directory_is_read(directory: Path) -> None:
    state = read_all(directory)
    assert {name: tuple(x.shape) for name, x in state.items()} == {r.name: r.shape for r in rules(SPEC, VOCAB, "glm4_moe")}
    assert all(x.dtype == torch.float32 for x in state.values())


def test_weights_in_bf16_become_fp32(directory: Path) -> None:
    before = read_all(directory)
    tensors = {name: x.bfloat16() for name, x in load_file(directory / ONE_FILE).items()}
    save_file(tensors, directory / ONE_FILE)
    after = read_all(directory)
    assert all(x.dtype == torch.float32 and torch.equal(x, before[name].bfloat16().float()) for name, x in after.items())


def tensors_changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        tensors = load_file(directory / ONE_FILE)
        change(tensors)
        save_file(tensors, directory / ONE_FILE)

    return spoil


def config_changed(**change: Any) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        config = json.loads((directory / CONFIG).read_text())
        write_json(directory / CONFIG, config | change)

    return spoil


def gone(directory: Path) -> None:
    directory.rename(directory.with_name("elsewhere"))


def cut(keep: Callable[[int], int]) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        content = (directory / ONE_FILE).read_bytes()
        (directory / ONE_FILE).write_bytes(content[: keep(len(content))])

    return spoil


def spread(files: dict[str, str]) -> Callable[[Path], None]:
    """An index that says where tensors are, beside the file that has them all but the last."""

    def spoil(directory: Path) -> None:
        tensors = load_file(directory / ONE_FILE)
        head = tensors.pop(LAST)
        save_file(tensors, directory / "a.safetensors")
        save_file({"another": head}, directory / "b.safetensors")
        write_json(directory / INDEX, {"weight_map": dict.fromkeys(tensors, "a.safetensors") | files})

    return spoil


UNREADABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no directory": (gone, "model is no directory; init_from names one with config.json"),
    "no config": (lambda d: (d / CONFIG).unlink(), r"config\.json is missing"),
    "a config that is no JSON": (lambda d: (d / CONFIG).write_text("{"), r"config\.json cannot be read"),
    "a config that is a list": (lambda d: (d / CONFIG).write_text("[]"), "holds no mapping"),
    "a config without end": (lambda d: (d / CONFIG).write_text("[" * 100_000), r"config\.json cannot be read"),
    "a size that is none": (config_changed(hidden_size="wide"), "describes no model: hidden_size"),
    "no weights": (lambda d: (d / ONE_FILE).unlink(), r"model\.safetensors is missing"),
    "an empty file": (cut(lambda size: 0), "torn or no safetensors file.*0 bytes"),
    "a torn header": (cut(lambda size: 100), "torn or no safetensors file.*100 bytes"),
    "torn weights": (cut(lambda size: size - 4), "torn or no safetensors file"),
    "a missing tensor": (tensors_changed(lambda t: t.pop(GATE)), f"the tensor {GATE} is missing"),
    "a missing expert": (
        tensors_changed(lambda t: t.pop("model.layers.1.mlp.experts.7.down_proj.weight")),
        r"experts\.7\.down_proj\.weight is missing",
    ),
    "another shape": (
        tensors_changed(lambda t: t.update({GATE: torch.zeros(7, 32)})),
        rf"{GATE} has shape \[7, 32\]; config\.json asks for \[8, 32\]",
    ),
    "NaN": (tensors_changed(lambda t: t[GATE][3].fill_(torch.nan)), f"32 of 256 numbers in {GATE} are NaN or infinite"),
    "infinity": (tensors_changed(lambda t: t[LAST][0, :1].fill_(torch.inf)), f"1 of 2048 numbers in {LAST}"),
    "a file of the index missing": (spread({LAST: "c.safetensors"}), r"c\.safetensors is missing"),
    "an index without a map": (lambda d: (d / INDEX).write_text("{}"), "has no weight_map"),
    "an index of numbers": (lambda d: (d / INDEX).write_text('{"weight_map": {"a": 3}}'), "has no weight_map"),
    "a file elsewhere": (spread({LAST: "../model/b.safetensors"}), r"names the file '\.\./model/b\.safetensors', which"),
    "a tensor of the index missing": (
        spread({LAST: "b.safetensors"}),
        f"names the tensor {LAST}, which b.safetensors does not",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_directory_that_cannot_be_read_says_why(name: str, directory: Path) -> None:
    spoil, message = UNREADABLE[name]
    spoil(directory)
    with pytest.raises(PretrainedUnreadable, match=message) as caught:
        read_all(directory)
    assert (caught.value.code, caught.value.pointer) == ("pretrained_unreadable", "/init_from")


MISMATCHED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another architecture": (config_changed(model_type="gpt2"), "model_type 'gpt2'; the decoder can take over llama"),
    "quantised weights": (
        tensors_changed(lambda t: t.update({GATE: t[GATE].to(torch.int8)})),
        f"{GATE} holds I8; the decoder takes over BF16",
    ),
    "a tensor without a place": (
        tensors_changed(lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)})),
        r"q_proj\.bias, which the decoder has no place for",
    ),
}


@pytest.mark.parametrize("name", MISMATCHED)
def test_a_model_that_the_decoder_cannot_take_over_says_why(name: str, directory: Path) -> None:
    spoil, message = MISMATCHED[name]
    spoil(directory)
    with pytest.raises(PretrainedMismatch, match=message) as caught:
        read_all(directory)
    assert (caught.value.code, caught.value.pointer) == ("pretrained_mismatch", "/init_from")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 64}, "hidden_size 32 there, 64 in model, head_dim 8 there, 16 in model"),
        ({"num_hidden_layers": 3}, "num_hidden_layers 2 there, 3 in model"),
        ({"num_attention_heads": 8, "head_dim": 8}, "num_attention_heads 4 there, 8 in model"),
        ({"num_experts_per_tok": 3, "norm_topk_prob": False}, "num_experts_per_tok 2 there, 3 in model, norm_topk_prob True"),
        ({"rope_theta": 5e5}, r"rope_theta 10000\.0 there, 500000\.0 in model"),
        ({"qk_norm": "head"}, "qk_norm None there, head in model"),
        ({"max_position_embeddings": 262_144}, "max_position_embeddings 131072 there, 262144 in model"),
        ({"attention": "mla"}, "attention gqa there, mla in model"),
        ({"n_routed_experts": 0}, "n_routed_experts 8 there, none in model"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings False there, True in model"),
    ],
)
def test_every_size_that_differs_is_named_with_both_values(change: dict[str, Any], message: str, directory: Path) -> None:
    with pytest.raises(PretrainedMismatch, match=message) as caught:
        read_all(directory, ModelSpec.model_validate({**SPEC.model_dump(), **change}))
    assert (caught.value.pointer or "").startswith("/model/")


def test_a_job_can_be_refused_before_torch_is_there(directory: Path) -> None:
    require_model(directory, SPEC)
    with pytest.raises(PretrainedMismatch, match="hidden_size 32 there, 64 in model"):
        require_model(directory, ModelSpec.model_validate({**SPEC.model_dump(), "hidden_size": 64}))
    code = "import sys, workers.hf.directory; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_fields_that_only_training_needs_may_differ(directory: Path) -> None:
    free = {"dropout": 0.1, "num_nextn_predict_layers": 1, "router_aux_loss_coef": 0.01, "mtp_loss_coef": 0.1}
    model = ModelSpec.model_validate({**SPEC.model_dump(), **free, "router_bias_update_rate": 0.0, "initializer_range": 0.006})
    assert read_all(directory, model).keys() == read_all(directory).keys()


def test_shorter_rows_are_read_and_longer_ones_where_positions_are_stretched(directory: Path) -> None:
    yarn = {"rope_scaling": {"factor": 2, "original_max_position_embeddings": 131_072}}
    for change in ({"max_position_embeddings": 512}, yarn | {"max_position_embeddings": 262_144}):
        assert (
            read_all(directory, ModelSpec.model_validate({**SPEC.model_dump(), **change})).keys() == read_all(directory).keys()
        )


def test_a_layer_behind_the_last_is_of_multi_token_prediction(directory: Path) -> None:
    whole = read_all(directory).keys()
    extra = {"model.layers.2.eh_proj.weight": torch.zeros(2), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}
    tensors_changed(lambda t: t.update(extra))(directory)
    assert read_all(directory).keys() == whole


def test_another_vocabulary_is_refused_and_the_right_tokenizer_named(directory: Path) -> None:
    with pytest.raises(PretrainedMismatch, match="vocabulary of 64, the job's tokenizer one of 300") as caught:
        read_all(directory, vocab_size=300)
    assert caught.value.pointer == "/init_from"
    model = train_tokenizer(["the old cat sees a house"], TokenizerSpec(vocab_size=300))
    (directory / "tokenizer.model").write_bytes(model)
    config_changed(vocab_size=Tokenizer(model).vocab_size)(directory)
    with pytest.raises(PretrainedMismatch, match=rf"set tokenizer.path to {directory}/tokenizer\.model"):
        read_all(directory, vocab_size=301)


def test_the_home_directory_may_be_written_short(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(directory.parent))
    assert read_all(Path("~/model")).keys() == read_all(directory).keys()

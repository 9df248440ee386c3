"""The model's parts against naive references, and what a packed row may and may not see, whatever the attention's pattern."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from data.dataset import Batch
from workers.model.attention import make_attention
from workers.model.decoder import Decoder, Objective
from workers.model.init import initial_value
from workers.model.inputs import Input, packed_rows
from workers.model.loss import IGNORED
from workers.model.norm import RMSNorm
from workers.model.rope import rope_angles, rope_frequencies, rotate
from workers.model.sight import Masked, Windows, attend, document_sight
from workers.model.spec import ModelSpec

CPU = torch.device("cpu")
VOCAB = 64
COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
}
LATENT = {"attention": "mla", "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
BLOCK = 4
PATTERNS: dict[str, dict[str, Any]] = {
    "full": {},
    "sliding": {"attention_pattern": "sliding", "sliding_window": 3},
    "layered": {"attention_pattern": "layered", "sliding_window": 3, "num_attention_heads_by_layer": (2, 4)},
    "hierarchical": {"attention_pattern": "hierarchical", "hierarchical_block": BLOCK, "hierarchical_slots": 2},
    "segments": {"segment_length": 2 * BLOCK, "memory_length": BLOCK},
    "latent": LATENT,
    "latent queries": {**LATENT, "q_lora_rank": 12},
    "latent segments": {**LATENT, "segment_length": 2 * BLOCK, "memory_length": 2 * BLOCK},
    "partial rotary, normed heads": {"partial_rotary_factor": 0.5, "qk_norm": "head"},
    "normed layers": {"qk_norm": "layer"},
}
every_pattern = pytest.mark.parametrize("pattern", PATTERNS)


def spec_of(pattern: str = "full", **more: Any) -> ModelSpec:
    return ModelSpec.model_validate({**COMMON, **PATTERNS[pattern], **more})


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decoder(spec: ModelSpec, **options: Any) -> Decoder:
    """Random everywhere: at its real start a block is the identity and would hide what attention sees."""
    model = Decoder(spec, VOCAB, torch.float32, **options)
    with torch.no_grad():
        for i, tensor in enumerate(model.state_dict().values()):
            tensor.copy_(randn(*tensor.shape, seed=i) * 0.3)
    return model


def row(*lengths: int, seed: int = 0, length: int | None = None) -> Batch:
    """One row of documents of these lengths, each from a block border on, padded to ``length``."""
    ids = [i for number, size in enumerate(lengths) for i in [number] * size + [-1] * (-size % BLOCK)]
    ids += [-1] * ((length or len(ids)) - len(ids))
    positions = [i for size in lengths for i in [*range(size), *[0] * (-size % BLOCK)]]
    positions += [0] * (len(ids) - len(positions))
    tokens = np.random.default_rng(seed).integers(0, VOCAB, (1, len(ids)), dtype=np.uint32)
    return Batch(tokens, np.array([ids], dtype=np.int32), np.array([positions], dtype=np.int32))


def inputs(spec: ModelSpec, batch: Batch) -> Input:
    return packed_rows(spec, batch, CPU, torch.float32)


def logits(model: Decoder, batch: Batch) -> torch.Tensor:
    """[T, V]"""
    return model(inputs(model.spec, batch), logits=True)[0].detach()


@pytest.mark.parametrize("length", [7, 600])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 2, 40])
def test_attention_is_a_masked_softmax(length: int, kv_heads: int, window: int | None) -> None:
    heads, size = 4, 8
    documents_BT = (torch.arange(length) // 90).expand(2, length).clone()
    documents_BT[1] = 0
    q, k, v = randn(2, length, heads, size), randn(2, length, kv_heads, size, seed=1), randn(2, length, kv_heads, size, seed=2)

    scores = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(heads // kv_heads, 2)) / size**0.5
    same = documents_BT[:, :, None] == documents_BT[:, None, :]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = same & (distance >= 0) & (distance < (window or length))
    weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
    expected = torch.einsum("bhts,bshd->bthd", weights, v.repeat_interleave(heads // kv_heads, 2))

    sight = document_sight(documents_BT, CPU, torch.float32, window)
    assert isinstance(sight, Windows if window and length > 2 * window else Masked)
    torch.testing.assert_close(attend(q, k, v, sight, size**-0.5), expected)


def test_rotary_products_depend_on_relative_positions_only() -> None:
    q, k = randn(1, 1, 1, 16), randn(1, 1, 1, 16, seed=1)
    spec = spec_of(head_dim=16)

    def product(i: int, j: int) -> torch.Tensor:
        at_i, at_j = (rope_angles(torch.tensor([[at]]), spec, torch.float32) for at in (i, j))
        return (rotate(q, *at_i) * rotate(k, *at_j)).sum()

    torch.testing.assert_close(product(9, 4), product(105, 100), rtol=1e-4, atol=1e-5)
    assert not torch.isclose(product(9, 4), product(9, 5), rtol=1e-2)


def test_channels_beyond_the_rotary_ones_stay_as_they_are() -> None:
    spec = spec_of(head_dim=16, partial_rotary_factor=0.5)
    x = randn(1, 3, 2, 16)
    turned = rotate(x, *rope_angles(torch.tensor([[0, 1, 2]]), spec, torch.float32))
    assert torch.equal(turned[..., 8:], x[..., 8:])
    assert torch.equal(turned[:, 0], x[:, 0])
    assert not torch.isclose(turned[:, 1:, :, :8], x[:, 1:, :, :8]).all(-1).any()


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    plain, _ = rope_frequencies(spec_of(head_dim=64))
    yarn = {"factor": 8.0, "original_max_position_embeddings": 4096}
    stretched, length = rope_frequencies(spec_of(head_dim=64, rope_scaling=yarn))
    ratio = plain / stretched
    assert ratio[0] == 1.0
    assert ratio[-1] == pytest.approx(8.0)
    assert (ratio.diff() >= -1e-5).all()
    assert length == pytest.approx(0.1 * np.log(8.0) + 1)


def test_norm_gives_unit_root_mean_square_times_the_weight() -> None:
    norm = RMSNorm(32, 1e-6)
    norm.weight.data.fill_(3.0)
    y = norm(randn(5, 32) * 100)
    torch.testing.assert_close(y.square().mean(-1).sqrt(), torch.full((5,), 3.0))


@every_pattern
def test_a_packed_row_equals_its_documents_alone(pattern: str) -> None:
    model = decoder(spec_of(pattern))
    batch = row(13, 6, 24)
    packed = logits(model, batch)
    for number, size in enumerate((13, 6, 24)):
        at = int((batch.document_ids[0] == number).argmax())
        if pattern.endswith("segments") and at % (2 * BLOCK):
            continue  # segments are the row's: a document that begins inside one has other borders alone
        alone = row(size, length=size + -size % BLOCK)
        alone.tokens[:, :size] = batch.tokens[:, at : at + size]
        torch.testing.assert_close(packed[at : at + size], logits(model, alone)[:size], rtol=1e-4, atol=1e-5)


@every_pattern
@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3), at=st.integers(0, 59))
def test_nothing_leaks_from_the_future_or_from_other_documents(pattern: str, lengths: list[int], at: int) -> None:
    model = decoder(spec_of(pattern))
    batch = row(*lengths)
    at %= batch.tokens.shape[1]
    changed = Batch(batch.tokens.copy(), batch.document_ids, batch.positions)
    changed.tokens[0, at] = (int(changed.tokens[0, at]) + 1) % VOCAB
    difference = (logits(model, batch) - logits(model, changed)).abs().amax(-1)
    ids = batch.document_ids[0]
    may_differ = torch.from_numpy((ids == ids[at]) & (np.arange(len(ids)) >= at)) | torch.from_numpy(ids < 0)
    assert (difference[~may_differ] < 1e-6).all()
    if ids[at] >= 0:
        assert difference[at] > 1e-6, "a token sees itself"


@every_pattern
def test_the_past_is_seen_as_far_as_the_pattern_says(pattern: str) -> None:
    spec = spec_of(pattern)
    model = decoder(spec)
    batch = row(32)
    changed = Batch(batch.tokens.copy(), batch.document_ids, batch.positions)
    changed.tokens[0, 0] = (int(changed.tokens[0, 0]) + 1) % VOCAB
    reached = int((logits(model, batch) - logits(model, changed)).abs().amax(-1).gt(1e-6).nonzero().max())
    far = {
        "sliding": 2 * (3 - 1),  # a window a layer
        "latent segments": 3 * 2 * BLOCK - 1,  # two layers, a segment each
    }
    if pattern == "segments":
        # Memory is the last BLOCK tokens of a segment: token 0 reaches the second segment through them, from layer to layer.
        assert 2 * BLOCK - 1 < reached <= 3 * 2 * BLOCK - 1
    else:
        assert reached == far.get(pattern, 31)


@pytest.mark.parametrize("pattern", ["segments", "latent segments"])
def test_segment_memory_is_one_long_sequence_under_its_mask_and_takes_no_gradient(pattern: str) -> None:
    spec = spec_of(pattern)
    assert spec.segment_length is not None
    attention = make_attention(spec, 0)
    for i, p in enumerate(attention.parameters()):
        p.data.copy_(randn(*p.shape, seed=i) * 0.3)
    batch = row(32)
    x_BTD = randn(1, 32, 32).requires_grad_()
    sight = inputs(spec, batch).sights["full"]
    angles = rope_angles(torch.arange(32)[None], spec, torch.float32)
    y_BTD = attention(x_BTD, angles, sight)

    segment, at = spec.segment_length, torch.arange(32)
    begin = at[:, None] // segment * segment
    mask = (at[None, :] <= at[:, None]) & (at[None, :] >= begin - spec.memory_length)
    attention.remembers = False
    torch.testing.assert_close(y_BTD, attention(x_BTD, angles, Masked(mask[None])), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(y_BTD[0, segment:].square().sum(), x_BTD)
    assert gradient[0, :segment].count_nonzero() == 0
    assert gradient[0, segment:].count_nonzero() > 0


def test_further_tokens_are_predicted_inside_their_document() -> None:
    spec = spec_of(num_nextn_predict_layers=2)
    model = decoder(spec)
    batch = row(9, 5)
    output = model(inputs(spec, batch))
    assert output.counts_LE.shape == (4, 4)
    weight = spec.mtp_loss_coef
    torch.testing.assert_close(output.objective, output.cross_entropy + weight * output.further)

    # Each document alone has the same further loss: nothing is predicted across a border.
    alone = []
    for number, size in enumerate((9, 5)):
        at = int((batch.document_ids[0] == number).argmax())
        single = row(size)
        single.tokens[:, :size] = batch.tokens[:, at : at + size]
        alone.append(model(inputs(spec, single)).further)
    torch.testing.assert_close(output.further, alone[0] + alone[1], rtol=1e-4, atol=1e-4)
    assert row(2).target_mask.sum() == 1
    assert model(inputs(spec, row(2))).further == 0.0, "two tokens have one next token and no further one"


def test_a_further_predictor_reads_the_next_token_and_learns_the_one_after() -> None:
    spec = spec_of(num_nextn_predict_layers=1, num_hidden_layers=1)
    model = decoder(spec)
    batch = row(8)
    seen = inputs(spec, batch)
    x_BTD, _ = model._hidden(seen)
    tokens_BT = seen.tokens_BT
    predictor = model.predictors[0]
    embedded = F.embedding(F.pad(tokens_BT[:, 1:], (0, 1)), model.embedding)
    angles = rope_angles(seen.positions_BT, spec, torch.float32)
    _, y_BTD, _ = predictor(x_BTD, embedded, angles, seen.sights["full"], seen.valid_BT, None)
    expected = F.cross_entropy(F.linear(y_BTD, model.head)[0, :6], tokens_BT[0, 2:8], reduction="sum")
    torch.testing.assert_close(model(seen).further, expected)


def test_auxiliary_losses_are_means_times_targets() -> None:
    spec = spec_of(router_aux_loss_coef=0.25, router_z_loss_coef=0.5)
    model = decoder(spec)
    batch = row(9, 5)
    output = model(inputs(spec, batch))
    plain = decoder(spec_of())(inputs(spec, batch))
    torch.testing.assert_close(output.cross_entropy, plain.cross_entropy)
    targets, valid = int(batch.target_mask.sum()), int((batch.document_ids >= 0).sum())
    statistics = model._hidden(inputs(spec, batch))[1]
    balance, z = (
        sum(float(getattr(each, name).detach()) for each in statistics) / valid * targets for name in ("balance", "z")
    )
    assert float(output.balance) == pytest.approx(balance)
    assert float(output.objective.detach()) == pytest.approx(float(output.cross_entropy) + 0.25 * balance + 0.5 * z, rel=1e-5)


def test_smoothing_and_focus_change_the_objective_and_not_the_reported_loss() -> None:
    spec, batch = spec_of(), row(9, 5)
    plain = decoder(spec)(inputs(spec, batch))
    other = decoder(spec, objective=Objective(label_smoothing=0.1, focal_gamma=1.0))(inputs(spec, batch))
    torch.testing.assert_close(plain.objective, plain.cross_entropy)
    torch.testing.assert_close(other.cross_entropy, plain.cross_entropy)
    assert not torch.isclose(other.objective, plain.objective)


def test_initial_values_are_a_function_of_seed_and_name() -> None:
    spec, shape = spec_of(), torch.Size([4, 3])
    value = initial_value(spec, 0, "blocks.0.attention.qkv", shape)
    assert torch.equal(value, initial_value(spec, 0, "blocks.0.attention.qkv", shape))
    assert not torch.equal(value, initial_value(spec, 0, "blocks.1.attention.qkv", shape))
    assert not torch.equal(value, initial_value(spec, 1, "blocks.0.attention.qkv", shape))


def test_the_first_layers_can_be_dense_and_the_head_its_own() -> None:
    model = decoder(spec_of(first_k_dense_replace=1, tie_word_embeddings=False))
    assert len(model.experts) == 1
    assert "head" in dict(model.named_parameters())
    output = model(inputs(model.spec, row(3)))
    assert output.counts_LE.shape == (1, 4)


@every_pattern
@pytest.mark.parametrize("tied", [True, False])
def test_a_new_model_is_as_uncertain_as_can_be(pattern: str, tied: bool) -> None:
    spec = spec_of(pattern, tie_word_embeddings=tied, num_nextn_predict_layers=0 if "segments" in pattern else 1)
    model = Decoder(spec, VOCAB, torch.float32)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(initial_value(spec, 0, name, tensor.shape))
    batch = row(16)
    output = model(inputs(spec, batch))
    torch.testing.assert_close(output.cross_entropy / 15, torch.tensor(VOCAB).float().log(), rtol=0.05, atol=0.0)
    assert (inputs(spec, batch).targets_BT == IGNORED).sum() == 1

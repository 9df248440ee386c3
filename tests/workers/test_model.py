"""The model's parts against naive references, and what a packed row may and may not see."""

import pytest
import torch
from torch.nn import functional as F

from workers.model.attention import attend, document_borders
from workers.model.decoder import IGNORED, Decoder, Input
from workers.model.init import initial_value
from workers.model.moe import MoE
from workers.model.norm import RMSNorm
from workers.model.rope import rope_angles, rotate
from workers.spec import ModelSpec

CPU = torch.device("cpu")
SMALL = ModelSpec(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, moe_intermediate_size=16)
VOCAB = 64


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(module: torch.nn.Module, std: float = 0.3) -> torch.nn.Module:
    for i, tensor in enumerate(module.state_dict().values()):
        tensor.copy_(randn(*tensor.shape, seed=i) * std)
    return module


def decoder(spec: ModelSpec = SMALL) -> Decoder:
    """Random everywhere: at its real start a block is the identity and would hide what attention sees."""
    model = filled(Decoder(spec, VOCAB, torch.float32))
    assert isinstance(model, Decoder)
    return model


def batch(tokens: list[list[int]], documents: list[list[int]], positions: list[list[int]]) -> Input:
    tokens_BT, documents_BT = torch.tensor(tokens), torch.tensor(documents)
    borders = document_borders(documents_BT, CPU, torch.float32)
    return Input(tokens_BT, torch.tensor(positions), borders, documents_BT >= 0, torch.full_like(tokens_BT, IGNORED))


@pytest.mark.parametrize("length", [7, 600])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_a_masked_softmax(length: int, kv_heads: int) -> None:
    heads, size = 4, 8
    documents_BT = (torch.arange(length) // 3).expand(2, length).clone()
    documents_BT[1] = 0
    q, k, v = randn(2, length, heads, size), randn(2, length, kv_heads, size, seed=1), randn(2, length, kv_heads, size, seed=2)

    scores = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(heads // kv_heads, 2)) / size**0.5
    same = documents_BT[:, :, None] == documents_BT[:, None, :]
    seen = same & (torch.arange(length)[:, None] >= torch.arange(length)[None, :])
    weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
    expected = torch.einsum("bhts,bshd->bthd", weights, v.repeat_interleave(heads // kv_heads, 2))

    torch.testing.assert_close(attend(q, k, v, document_borders(documents_BT, CPU, torch.float32)), expected)


def test_rotary_products_depend_on_relative_positions_only() -> None:
    q, k = randn(1, 1, 1, 16), randn(1, 1, 1, 16, seed=1)

    def product(i: int, j: int) -> torch.Tensor:
        at_i = rope_angles(torch.tensor([[i]]), 16, 10_000.0, torch.float32)
        at_j = rope_angles(torch.tensor([[j]]), 16, 10_000.0, torch.float32)
        return (rotate(q, *at_i) * rotate(k, *at_j)).sum()

    torch.testing.assert_close(product(9, 4), product(105, 100), rtol=1e-4, atol=1e-5)
    assert not torch.isclose(product(9, 4), product(9, 5), rtol=1e-2)


def test_norm_gives_unit_root_mean_square_times_the_weight() -> None:
    norm = RMSNorm(32, 1e-6)
    norm.weight.data.fill_(3.0)
    y = norm(randn(5, 32) * 100)
    torch.testing.assert_close(y.square().mean(-1).sqrt(), torch.full((5,), 3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_expert_dispatch_is_a_loop_over_experts(dtype: torch.dtype) -> None:
    moe = filled(MoE(SMALL))
    assert isinstance(moe, MoE)
    x_ND = randn(40, 32).to(dtype).requires_grad_()
    y_ND, counts_E = moe(x_ND, torch.ones(40, dtype=torch.bool))

    chosen_NK, weight_NK = moe.route(x_ND)
    rows = []
    for n in range(40):
        row = moe.shared(x_ND[n]) if moe.shared is not None else 0.0
        for expert, weight in zip(chosen_NK[n].tolist(), weight_NK[n], strict=True):
            gate, up = F.linear(x_ND[n], moe.gate_up[expert].to(dtype)).chunk(2)
            row = row + weight.to(dtype) * F.linear(F.silu(gate) * up, moe.down[expert].to(dtype))
        rows.append(row)
    expected_ND = torch.stack(rows)
    tolerance = {} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(y_ND, expected_ND, **tolerance)
    assert counts_E.tolist() == chosen_NK.flatten().bincount(minlength=8).tolist()

    parameters = [x_ND, moe.router, moe.gate_up, moe.down]
    scale = randn(40, 32, seed=9).to(dtype)
    actual = torch.autograd.grad((y_ND * scale).sum(), parameters)
    reference = torch.autograd.grad((expected_ND * scale).sum(), parameters)
    for a, b in zip(actual, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4 if not tolerance else 0.1, atol=1e-4 if not tolerance else 0.2)


def test_experts_that_nobody_chose_are_no_trouble() -> None:
    moe = filled(MoE(SMALL))
    assert isinstance(moe, MoE)
    moe.bias.copy_(torch.tensor([9.0, 9.0, 0, 0, 0, 0, 0, 0]))
    y_ND, counts_E = moe(randn(10, 32), torch.ones(10, dtype=torch.bool))
    y_ND.sum().backward()
    assert counts_E.tolist() == [10, 10, 0, 0, 0, 0, 0, 0]
    assert moe.gate_up.grad is not None
    assert moe.gate_up.grad[2:].count_nonzero() == 0


def test_the_router_bias_chooses_but_does_not_weigh() -> None:
    moe = filled(MoE(SMALL))
    assert isinstance(moe, MoE)
    x_ND = randn(10, 32)
    moe.bias.copy_(torch.tensor([0, 0, 0, 5.0, 0, 5.0, 0, 0]))
    chosen_NK, weight_NK = moe.route(x_ND)
    scores_NE = F.linear(x_ND, moe.router).sigmoid()
    assert {frozenset(row) for row in chosen_NK.tolist()} == {frozenset({3, 5})}
    picked = scores_NE.gather(1, chosen_NK)
    torch.testing.assert_close(weight_NK, picked / picked.sum(-1, keepdim=True))


def test_the_router_bias_moves_by_sign_and_stays_centred() -> None:
    moe = MoE(SMALL.model_copy(update={"n_routed_experts": 4}))
    moe.bias.zero_()
    moe.update_bias(torch.tensor([100, 0, 0, 0]), rate=0.1)
    torch.testing.assert_close(moe.bias, torch.tensor([-0.15, 0.05, 0.05, 0.05]))
    moe.update_bias(torch.tensor([25, 25, 25, 25]), rate=0.1)
    torch.testing.assert_close(moe.bias, torch.tensor([-0.15, 0.05, 0.05, 0.05]))


def test_padding_is_not_counted_as_expert_load() -> None:
    moe = filled(MoE(SMALL))
    _, counts_E = moe(randn(10, 32), torch.arange(10) < 4)
    assert counts_E.sum() == 4 * SMALL.num_experts_per_tok


def test_a_packed_row_equals_its_documents_alone() -> None:
    model = decoder()
    a, b = [5, 6, 7, 8, 9], [10, 11, 12]
    packed, _ = model(batch([a + b], [[0] * 5 + [1] * 3], [[0, 1, 2, 3, 4, 0, 1, 2]]), logits=True)
    first, _ = model(batch([a], [[0] * 5], [[0, 1, 2, 3, 4]]), logits=True)
    second, _ = model(batch([b], [[0] * 3], [[0, 1, 2]]), logits=True)
    torch.testing.assert_close(packed[0], torch.cat([first[0], second[0]]), rtol=1e-5, atol=1e-5)


def test_nothing_leaks_from_the_future() -> None:
    model = decoder()
    tokens = list(range(12))
    seen, _ = model(batch([tokens], [[0] * 12], [list(range(12))]), logits=True)
    changed, _ = model(batch([[*tokens[:7], 60, 61, 62, 63, 1]], [[0] * 12], [list(range(12))]), logits=True)
    torch.testing.assert_close(seen[0, :7], changed[0, :7], rtol=1e-5, atol=1e-6)
    assert (seen[0, 7:] - changed[0, 7:]).abs().max() > 1e-3


def test_initial_values_are_a_function_of_seed_and_name() -> None:
    shape = torch.Size([4, 3])
    value = initial_value(SMALL, 0, "blocks.0.attention.qkv", shape)
    assert torch.equal(value, initial_value(SMALL, 0, "blocks.0.attention.qkv", shape))
    assert not torch.equal(value, initial_value(SMALL, 0, "blocks.1.attention.qkv", shape))
    assert not torch.equal(value, initial_value(SMALL, 1, "blocks.0.attention.qkv", shape))


def test_the_first_layers_can_be_dense_and_the_head_its_own() -> None:
    model = decoder(SMALL.model_copy(update={"first_k_dense_replace": 1, "tie_word_embeddings": False}))
    assert len(model.experts) == 1
    assert "head" in dict(model.named_parameters())
    logits, counts_LE = model(batch([[1, 2, 3]], [[0, 0, 0]], [[0, 1, 2]]), logits=True)
    assert logits.shape == (1, 3, VOCAB)
    assert counts_LE.shape == (1, 8)


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_model_is_as_uncertain_as_can_be(tied: bool) -> None:
    spec = SMALL.model_copy(update={"tie_word_embeddings": tied})
    model = Decoder(spec, VOCAB, torch.float32)
    for name, tensor in model.state_dict().items():
        tensor.copy_(initial_value(spec, 0, name, tensor.shape))
    inputs = batch([[1, 2, 3, 4]], [[0, 0, 0, 0]], [[0, 1, 2, 3]])
    loss, _ = model(inputs._replace(targets_BT=torch.tensor([[2, 3, 4, IGNORED]])))
    torch.testing.assert_close(loss / 3, torch.tensor(VOCAB).float().log(), rtol=0.05, atol=0.0)

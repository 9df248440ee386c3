"""The model's parts on a CUDA device against the CPU's; routing never makes the host wait. Skipped where there is none.

Legend: B rows, T positions, H heads, d head size of queries and keys, e of values.
"""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.workers.test_model import PATTERNS, decoder, row, spec_of
from workers.model import sight
from workers.model.dropout import Noise, dropped
from workers.model.inputs import packed_rows
from workers.model.moe import MoE
from workers.model.sight import Masked, Packed, attend, document_sight, flash_attention
from workers.model.spec import ModelSpec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
T, SCALE = 128, 0.1
HAS_GROUPED_KERNEL = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] in (9, 10)


def randn(*shape: int, seed: int) -> torch.Tensor:
    """Values that bf16 holds exactly."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


@pytest.fixture(params=["torch", "flash-attn"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each variable-length kernel, whichever of them would be taken."""
    if request.param == "torch":
        monkeypatch.setattr(sight, "flash_attention", lambda: None)
    elif flash_attention() is None:
        pytest.skip("flash-attn does not import")
    return str(request.param)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    ("groups", "d", "e"),
    [(4, 64, 64), (2, 64, 64), (1, 128, 128), (4, 192, 128), (4, 24, 16), (4, 16, 24), (2, 12, 12)],
    ids=["heads", "grouped", "one group", "latent", "small latent", "wide values", "no multiple of 8"],
)
@pytest.mark.parametrize("window", [None, 1, 20])
def test_kernels_for_packed_documents_are_the_cpus_masked_attention(groups: int, d: int, e: int, window: int | None) -> None:
    documents_BT = torch.stack([(torch.arange(T) // 50), torch.zeros(T, dtype=torch.long)])
    documents_BT[1, 100:] = -1
    q, k, v = randn(2, T, 4, d, seed=0), randn(2, T, groups, d, seed=1), randn(2, T, groups, e, seed=2)
    weight_BTHe = randn(2, T, 4, e, seed=3)

    def result(device: torch.device, dtype: torch.dtype, kind: type) -> list[torch.Tensor]:
        seen = document_sight(documents_BT, device, dtype, window)
        assert isinstance(seen, kind)
        inputs = [x.to(device, dtype, copy=True).requires_grad_() for x in (q, k, v)]
        y = attend(*inputs, seen, SCALE)
        (y * weight_BTHe.to(device, dtype)).sum().backward()
        return [x.detach().float().cpu() for x in (y, *(x.grad for x in inputs if x.grad is not None))]

    expected = result(CPU, torch.float32, Masked if window is None else object)
    actual = result(GPU, torch.bfloat16, Packed)
    assert len(expected) == len(actual) == 4
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=3e-2, atol=3e-2 * float(theirs.abs().max().clamp(min=1)))


def test_grouped_heads_do_not_need_the_slowest_kernel() -> None:
    q, k, v = (torch.randn(2, 64, heads, 64, device=GPU) for heads in (4, 2, 2))
    seen = document_sight((torch.arange(64) // 20).expand(2, 64), GPU, torch.float32)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        assert attend(q, k, v, seen, SCALE).shape == q.shape


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_has_the_cpus_logits(pattern: str) -> None:
    spec = spec_of(pattern)
    model, batch = decoder(spec), row(13, 6, 24)
    on_gpu = deepcopy(model).to(GPU)
    expected = model(packed_rows(spec, batch, CPU, torch.float32), logits=True)
    actual = on_gpu(packed_rows(spec, batch, GPU, torch.float32), logits=True)
    valid = torch.from_numpy(batch.document_ids) >= 0
    torch.testing.assert_close(actual.cpu()[valid], expected[valid], rtol=1e-3, atol=1e-3)


def test_dropout_draws_the_same_bits() -> None:
    x_BTD, samples = torch.ones(3, 16, 64), torch.tensor([5, 2**40, 9])
    expected = dropped(x_BTD, Noise.of_rows(1, samples, 16, 0.3).at(2), 1)
    actual = dropped(x_BTD.to(GPU), Noise.of_rows(1, samples.to(GPU), 16, 0.3).at(2), 1)
    assert torch.equal(actual.cpu(), expected)


# -- experts ---------------------------------------------------------------------------------------------------------------


def experts(**more: object) -> MoE:
    spec = ModelSpec.model_validate(
        {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "moe_intermediate_size": 32,
            "n_routed_experts": 16,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "router_aux_loss_coef": 0.01,
            "router_z_loss_coef": 0.001,
            **more,
        }
    )
    layer = MoE(spec)
    with torch.no_grad():
        for i, tensor in enumerate(layer.state_dict().values()):
            tensor.copy_(randn(*tensor.shape, seed=i) * 0.25)
    return layer


def forward_and_backward(layer: MoE, x_BTD: torch.Tensor) -> Callable[[], torch.Tensor]:
    valid_BT = torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device)
    weight_BTD = torch.linspace(-1, 1, x_BTD.shape[-1], device=x_BTD.device, dtype=x_BTD.dtype)

    def run() -> torch.Tensor:
        y_BTD, statistics = layer(x_BTD, valid_BT)
        ((y_BTD * weight_BTD).sum() + statistics.balance + statistics.z).backward()
        return y_BTD.detach()

    return run


@pytest.mark.parametrize("scoring_func", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 3e-2), (torch.float16, 1e-2)])
def test_experts_are_the_cpus(dtype: torch.dtype, tolerance: float, scoring_func: str) -> None:
    layer = experts(scoring_func=scoring_func)
    on_gpu = deepcopy(layer).to(GPU)
    x_BTD = randn(2, 48, 64, seed=9).to(dtype)
    expected = forward_and_backward(layer, x_BTD)()
    actual = forward_and_backward(on_gpu, x_BTD.to(GPU))()
    torch.testing.assert_close(actual.cpu(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    for ours, theirs in zip(on_gpu.parameters(), layer.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        limit = tolerance * float(theirs.grad.abs().max())
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=tolerance, atol=limit)


@pytest.mark.skipif(not HAS_GROUPED_KERNEL, reason="without a kernel of its own torch reads the groups' sizes on the host")
def test_routing_never_waits_for_the_device() -> None:
    layer = experts().to(GPU)
    x_BTD = torch.randn(2, 256, 64, device=GPU, dtype=torch.bfloat16, requires_grad=True)
    run = forward_and_backward(layer, x_BTD)
    run()  # what is loaded or allocated for the first time may wait
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_a_wait_for_the_device_would_be_seen() -> None:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(3, device=GPU).nonzero()
    finally:
        torch.cuda.set_sync_debug_mode(before)

"""The engine on a CUDA device. Skipped where there is none."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.workers.tiny import VOCAB, run_steps, tiny_spec
from workers.engine import Engine
from workers.mesh import Membership
from workers.model.attention import attend, document_borders
from workers.spec import TrainSpec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

ALONE = Membership()


def on_gpu(**training: object) -> TrainSpec:
    spec = tiny_spec(**training)
    return spec.model_copy(update={"gpu_config": spec.gpu_config.model_copy(update={"gpus_per_node": 1})})


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 2e-2)])
def test_losses_are_the_cpus(precision: str, tolerance: float) -> None:
    gpu, _ = run_steps(ALONE, on_gpu(precision=precision), 0, 6, None)
    cpu, _ = run_steps(ALONE, tiny_spec(precision=precision), 0, 6, None)
    assert [loss for loss, _ in gpu] == pytest.approx([loss for loss, _ in cpu], rel=tolerance)


def test_compiled_blocks_train_the_same() -> None:
    plain, _ = run_steps(ALONE, on_gpu(precision="bf16"), 0, 4, None)
    compiled, _ = run_steps(ALONE, on_gpu(precision="bf16", compile=True), 0, 4, None)
    assert [loss for loss, _ in compiled] == pytest.approx([loss for loss, _ in plain], rel=2e-2)


def test_state_moves_between_cpu_and_gpu(tmp_path: Path) -> None:
    first, state = run_steps(ALONE, on_gpu(), 0, 3, None)
    second, _ = run_steps(ALONE, tiny_spec(), 3, 6, state)
    straight, _ = run_steps(ALONE, tiny_spec(), 0, 6, None)
    assert [loss for loss, _ in first + second] == pytest.approx([loss for loss, _ in straight], rel=1e-3)


def test_attention_kernels_agree_with_the_cpu() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 64, heads, 64, generator=draw) for heads in (4, 2, 2))
    documents_BT = (torch.arange(64) // 20).expand(2, 64)
    expected = attend(q, k, v, document_borders(documents_BT, torch.device("cpu"), torch.float32))
    device = torch.device("cuda")
    q, k, v = (x.to(device, torch.bfloat16) for x in (q, k, v))
    actual = attend(q, k, v, document_borders(documents_BT, device, torch.bfloat16))
    torch.testing.assert_close(actual.float().cpu(), expected, rtol=5e-2, atol=2e-2)


def test_grouped_heads_do_not_need_the_slowest_kernel() -> None:
    device = torch.device("cuda")
    q, k, v = (torch.randn(2, 64, heads, 64, device=device) for heads in (4, 2, 2))
    borders = document_borders((torch.arange(64) // 20).expand(2, 64), device, torch.float32)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        assert attend(q, k, v, borders).shape == q.shape


def test_the_device_is_the_one_asked_for() -> None:
    engine = Engine.build(on_gpu(), ALONE, VOCAB)
    assert {p.device.type for p in engine.model.parameters()} == {"cuda"}
    engine.teardown()

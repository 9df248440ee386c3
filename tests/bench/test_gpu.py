"""The GPU bench's own arithmetic, on a CPU and a model of a few thousand parameters."""

import pytest
import torch

from tests.bench import gpu
from workers.model.count import flops_per_token
from workers.plan import plan
from workers.spec import TrainSpec


def test_utilisation_is_the_rate_times_a_tokens_operations_over_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "WARM_UP", 1)
    monkeypatch.setattr(gpu, "STEPS", 2)
    spec = TrainSpec.model_validate(
        {
            "data_pipeline": {"sequence_length": 32},
            "tokenizer": {"vocab_size": 300},
            "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "moe_intermediate_size": 16},
            "training": {"steps": 3, "global_batch_size": 2, "micro_batch_size": 2},
        }
    )
    figures = gpu.utilisation(spec, torch.device("cpu"), 1e12)
    flops = figures["tokens_per_second"] * flops_per_token(spec.model, 300, 32)
    assert figures["mfu"] == pytest.approx(flops / 1e12, abs=1e-4)
    assert gpu.utilisation(spec, torch.device("cpu"), None)["mfu"] is None


def test_what_the_bench_trains_is_a_job_that_can_run() -> None:
    spec = gpu.on_gpu(gpu.utilised("olmoe-7b-a1b"))
    assert spec.gpu_config.gpus_per_node == 1
    assert plan(spec).problems == []


def test_without_a_device_nothing_is_said_to_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device: nothing was measured"):
        gpu.main()

"""Floating-point operations a token, counted by hand for one small model, and what devices could do."""

import pytest
import torch

from workers.flops import known_peak, measured_matrix_rate, peak_flops
from workers.model.count import flops_per_token
from workers.model.decoder import Decoder
from workers.model.spec import ModelSpec
from workers.spec import MonitoringSpec, TrainSpec

MODEL = ModelSpec(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, first_k_dense_replace=1)


def test_all_matrix_parameters_in_use_are_counted_six_times() -> None:
    model = Decoder(MODEL, 100, torch.float32)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim >= 2 and name != "embedding")
    idle = 2 * (MODEL.n_routed_experts - MODEL.num_experts_per_tok) * 3 * MODEL.hidden_size * MODEL.moe_intermediate_size
    assert flops_per_token(MODEL, 100, 0) == 6 * (matrices - idle)


def test_attention_adds_half_a_row_of_scores_and_sums() -> None:
    short, long = (flops_per_token(MODEL, 100, length) for length in (128, 256))
    # Scores and sums: 2 products x 2 operations x 3 passes x layers x heads x head size x half of the 128 further keys.
    assert long - short == 2 * 2 * 3 * 3 * 4 * 8 * 64


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 NVL", 835e12, 60e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA L40", 181e12, 90.5e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA A1000", None, None),
    ],
)
def test_a_gpu_is_known_by_whole_words_and_its_peak_by_precision(name: str, bf16: float | None, fp32: float | None) -> None:
    assert (known_peak(name, "bf16"), known_peak(name, "fp32")) == (bf16, fp32)


def test_a_stated_peak_is_taken() -> None:
    assert peak_flops(TrainSpec(monitoring=MonitoringSpec(peak_tflops=2.5)), torch.device("cpu")) == 2.5e12


def test_a_cpu_is_measured() -> None:
    assert measured_matrix_rate(torch.float32, size=64) > 0

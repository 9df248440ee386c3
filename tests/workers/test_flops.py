"""Floating-point operations a token, counted by hand for one small model."""

import torch

from workers.flops import matrix_parameters, measured_matrix_rate, peak_flops, training_flops_per_token
from workers.model.decoder import Decoder
from workers.spec import ModelSpec, MonitoringSpec, TrainSpec

MODEL = ModelSpec(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, first_k_dense_replace=1)


def test_all_matrix_parameters_are_counted() -> None:
    model = Decoder(MODEL, 100, torch.float32)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim >= 2 and name != "embedding")
    total, active = matrix_parameters(MODEL, 100)
    assert total == matrices
    idle = MODEL.n_routed_experts - MODEL.num_experts_per_tok
    assert total - active == 2 * idle * 3 * MODEL.hidden_size * MODEL.moe_intermediate_size


def test_attention_adds_half_a_row_of_scores_and_sums() -> None:
    short, long = (training_flops_per_token(MODEL, 100, length) for length in (128, 256))
    # Scores and sums: 2 products x 2 operations x 3 passes x layers x heads x head size x half of the 128 further keys.
    assert long - short == 2 * 2 * 3 * 3 * 4 * 8 * 64


def test_a_stated_peak_is_taken() -> None:
    assert peak_flops(TrainSpec(monitoring=MonitoringSpec(peak_tflops=2.5)), torch.device("cpu")) == 2.5e12


def test_a_cpu_is_measured() -> None:
    assert measured_matrix_rate(torch.float32, size=64) > 0

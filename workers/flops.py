"""Floating-point operations a token, and what a device could do: the halves of model FLOPs utilisation (arXiv 2204.02311)."""

import time

import torch

from workers.spec import ModelSpec, TrainSpec

# Dense bf16 tensor-core peaks in TFLOP/s, from the vendors' data sheets; the first name found in the device's is taken.
KNOWN_PEAKS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H800": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "4090": 165.0,
    "V100": 125.0,
    "T4": 65.0,
    "MI300X": 1307.0,
}


def matrix_parameters(model: ModelSpec, vocab_size: int) -> tuple[int, int]:
    """Parameters in matrix products (embedding look-ups left out, head counted): (all, those that one token uses)."""
    d, width = model.hidden_size, model.moe_intermediate_size
    heads = (2 * model.num_attention_heads + 2 * model.num_key_value_heads) * model.resolved_head_dim
    dense_layers = model.first_k_dense_replace
    moe_layers = model.num_hidden_layers - dense_layers
    common = model.num_hidden_layers * d * heads + dense_layers * 3 * d * model.intermediate_size + vocab_size * d
    fixed = moe_layers * (d * model.n_routed_experts + 3 * d * width * model.n_shared_experts)
    expert = moe_layers * 3 * d * width
    return common + fixed + expert * model.n_routed_experts, common + fixed + expert * model.num_experts_per_tok


def training_flops_per_token(model: ModelSpec, vocab_size: int, sequence_length: int) -> float:
    """Forward and backward: 6 a matrix parameter in use, and causal attention's scores and sums over half the row."""
    _, active = matrix_parameters(model, vocab_size)
    attention = 6 * model.num_hidden_layers * model.num_attention_heads * model.resolved_head_dim * sequence_length
    return 6.0 * active + attention


def peak_flops(spec: TrainSpec, device: torch.device) -> float | None:
    """FLOP/s of one device: the spec's, a known GPU's, or a CPU's measured matrix rate; None for a GPU that is not known."""
    stated = spec.monitoring.peak_tflops
    if stated != "auto":
        return float(stated) * 1e12
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak * 1e12 for key, peak in KNOWN_PEAKS.items() if key in name), None)
    return measured_matrix_rate(torch.bfloat16 if spec.training.precision == "bf16" else torch.float32)


def measured_matrix_rate(dtype: torch.dtype, size: int = 1024, repeats: int = 4) -> float:
    """FLOP/s of the fastest of a few square matrix products on this process's CPU threads (about a tenth of a second)."""
    a = torch.ones(size, size, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, a)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)

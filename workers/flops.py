"""What a device could compute: the lower half of model FLOPs utilisation (arXiv 2204.02311). The upper is in ``plan``."""

import re
import time

import torch

from workers.spec import TrainSpec

# Dense peaks in TFLOP/s, (bf16, fp32), from the vendors' data sheets; the first whose words are all in the device's name is
# taken. torch computes fp32 products without TF32 unless told to, and Manta does not tell it to.
KNOWN_PEAKS = {
    "GB200": (2500.0, 80.0),
    "B200": (2250.0, 75.0),
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 67.0),
    "H800": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "A800": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L40": (181.0, 90.5),
    "L4": (121.0, 30.3),
    "A10": (125.0, 31.2),
    "4090": (165.0, 82.6),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
    "MI300X": (1307.0, 163.4),
}


def peak_flops(spec: TrainSpec, device: torch.device) -> float | None:
    """FLOP/s of one device: the spec's, a known GPU's, or a CPU's measured matrix rate; None for a GPU that is not known."""
    stated = spec.monitoring.peak_tflops
    if stated != "auto":
        return float(stated) * 1e12
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return known_peak(name, spec.training.precision)
    return measured_matrix_rate(torch.bfloat16 if spec.training.precision == "bf16" else torch.float32)


def known_peak(device_name: str, precision: str) -> float | None:
    """FLOP/s of a GPU by the name that its driver gives it (e.g. ``NVIDIA A100-SXM4-80GB``); None if it is not known."""
    words = set(re.split(r"[\s-]+", device_name))
    peaks = next((peaks for key, peaks in KNOWN_PEAKS.items() if words.issuperset(key.split())), None)
    return None if peaks is None else peaks[precision != "bf16"] * 1e12


def measured_matrix_rate(dtype: torch.dtype, size: int = 1024, repeats: int = 4) -> float:
    """FLOP/s of the fastest of a few square matrix products on this process's CPU threads (about a tenth of a second)."""
    a = torch.ones(size, size, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, a)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)

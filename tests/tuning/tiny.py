"""A training job that takes moments."""

from typing import Any


def job(**training: Any) -> dict[str, Any]:
    return {
        "model": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "n_routed_experts": 2,
            "moe_intermediate_size": 16,
        },
        "training": {"steps": 6, "eval_interval": 2, "global_batch_size": 4, "micro_batch_size": 4, "eval_rows": 4, **training},
        "data_pipeline": {"sequence_length": 32},
        "monitoring": {"timing_interval": None, "peak_tflops": 1.0},
    }

"""The peer of ``make bench NAME=train``: a training loop over ``transformers``, as its users write it.

Fused AdamW with weight decay on matrices, gradients clipped to a norm, optionally autocast to bf16 and torch.compile.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class Recipe:
    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip_grad_norm: float


class Peer:
    """``from_pretrained(directory)`` in fp32, trained a batch at a time."""

    def __init__(
        self,
        directory: Path,
        recipe: Recipe,
        *,
        experts: str,
        autocast: bool,
        compiled: bool,
        device: torch.device = torch.device("cpu"),
    ) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="sdpa", experts_implementation=experts
        )
        self.model = self.model.to(device).train()
        self.device = device
        self.model.config.use_cache = False
        self.forward = torch.compile(self.model) if compiled else self.model
        self.recipe, self.autocast = recipe, autocast
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps, fused=True)

    def step(self, tokens_BT: torch.Tensor) -> float:
        """Rows of one document each. The mean cross-entropy before the step, nats."""
        tokens_BT = tokens_BT.to(self.device)
        with torch.autocast(tokens_BT.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.forward(input_ids=tokens_BT, labels=tokens_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

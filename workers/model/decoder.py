"""The decoder: embedding, blocks, norm, head.

Legend: B rows, T positions, D hidden size, V vocabulary, L mixture-of-experts layers, E experts.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from workers.model.attention import Attention, Borders
from workers.model.moe import MoE, SwiGLU
from workers.model.norm import RMSNorm
from workers.model.rope import rope_angles
from workers.spec import ModelSpec

IGNORED = -100
"""The target of a position that is not trained on."""


class Input(NamedTuple):
    """One micro-batch on the device."""

    tokens_BT: torch.Tensor
    positions_BT: torch.Tensor
    """Restart in each document."""
    borders: Borders
    valid_BT: torch.Tensor
    """False on padding."""
    targets_BT: torch.Tensor
    """The next token of the same document, else ``IGNORED``."""


class Block(nn.Module):
    """(x, positions' angles, documents) -> (x, tokens that chose each expert; None in a dense layer)."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.attention = Attention(spec)
        self.feed_forward_norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        dense = layer < spec.first_k_dense_replace
        self.feed_forward: SwiGLU | MoE = SwiGLU(spec.hidden_size, spec.intermediate_size) if dense else MoE(spec)

    def forward(
        self, x_BTD: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], borders: Borders, valid_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), angles, borders)
        h_BTD = self.feed_forward_norm(x_BTD)
        if isinstance(self.feed_forward, SwiGLU):
            return x_BTD + self.feed_forward(h_BTD), None
        y_ND, counts_E = self.feed_forward(h_BTD.flatten(0, 1), valid_BT.flatten())
        return x_BTD + y_ND.view_as(x_BTD), counts_E


class Decoder(nn.Module):
    """The root's own parameters are used inside ``forward`` only, so that sharding wrappers can gather them."""

    def __init__(self, spec: ModelSpec, vocab_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.spec, self.vocab_size, self.dtype = spec, vocab_size, dtype
        self.embedding = nn.Parameter(torch.empty(vocab_size, spec.hidden_size))
        self.blocks = nn.ModuleList(Block(spec, layer) for layer in range(spec.num_hidden_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.head = None if spec.tie_word_embeddings else nn.Parameter(torch.empty(vocab_size, spec.hidden_size))

    @property
    def experts(self) -> list[MoE]:
        """The mixture-of-experts layers, from the bottom."""
        return [block.feed_forward for block in self.blocks if isinstance(block.feed_forward, MoE)]

    def forward(self, batch: Input, *, logits: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed cross-entropy in nats over valid targets (or, with ``logits``, [B, T, V] in fp32), and the counts of
        valid tokens by layer and expert, [L, E]."""
        x_BTD = F.embedding(batch.tokens_BT, self.embedding).to(self.dtype)
        angles = rope_angles(batch.positions_BT, self.spec.resolved_head_dim, self.spec.rope_theta, self.dtype)
        counts = []
        for block in self.blocks:
            x_BTD, counts_E = block(x_BTD, angles, batch.borders, batch.valid_BT)
            if counts_E is not None:
                counts.append(counts_E)
        head = self.embedding if self.head is None else self.head
        logits_BTV = F.linear(self.norm(x_BTD), head.to(self.dtype)).float()
        counts_LE = torch.stack(counts) if counts else x_BTD.new_zeros(0, self.spec.n_routed_experts, dtype=torch.long)
        if logits:
            return logits_BTV, counts_LE
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), batch.targets_BT.flatten(), ignore_index=IGNORED, reduction="sum")
        return loss, counts_LE

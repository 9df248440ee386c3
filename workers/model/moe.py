"""Mixture of SwiGLU experts.

Legend: B rows, T positions, N = B T tokens, D hidden size, E experts, K experts a token, I expert width. Nothing here waits
for the device, and no shape depends on what the router chose.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from workers.model.feed_forward import SwiGLU, gate_and_up, gated, halves, matrices
from workers.model.grouped import from_experts, grouped_mm, places, to_experts
from workers.model.router import Routing, balance_loss, route, z_loss
from workers.model.spec import ModelSpec
from workers.muon import Split
from workers.timing import mark


class Statistics(NamedTuple):
    """Of one micro-batch's valid tokens. A loss whose coefficient is 0 is 0, and has no graph."""

    counts_E: torch.Tensor
    """int64: tokens that chose each expert."""
    balance: torch.Tensor
    """fp32 scalar: the sum over tokens of their row's sequence-wise balance loss, before its coefficient."""
    z: torch.Tensor
    """fp32 scalar: the sum over tokens of the router's z-loss, before its coefficient."""


class MoE(nn.Module):
    """[B, T, D] and which tokens are valid (not padding), [B, T] -> [B, T, D] in the type of the input, and ``Statistics``.

    Every token's row is the sum of the shared experts' output and its K experts', the latter by the router's weights. The
    experts compute in the type of the input, the router in fp32 (DeepSeek-V3, arXiv 2412.19437; bias: arXiv 2408.15664).
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        E, D, width = spec.n_routed_experts, spec.hidden_size, spec.moe_intermediate_size
        self.spec = spec
        self.router = nn.Parameter(torch.empty(E, D))
        self.gate_up = nn.Parameter(torch.empty(E, width, 2, D))
        self.down = nn.Parameter(torch.empty(E, D, width))
        self.shared = SwiGLU(D, spec.n_shared_experts * width) if spec.n_shared_experts else None
        self.bias: torch.Tensor
        self.register_buffer("bias", torch.empty(E, dtype=torch.float32))

    def forward(self, x_BTD: torch.Tensor, valid_BT: torch.Tensor) -> tuple[torch.Tensor, Statistics]:
        x_ND = mark(x_BTD.flatten(0, 1), "router")
        logits_NE = self.logits(x_ND)
        routing = route(logits_NE, self.bias, self.spec)
        statistics = self._statistics(logits_NE, routing, valid_BT)
        x_ND = mark(x_ND, "dispatch")
        at = places(routing.chosen_NK, self.spec.n_routed_experts)
        rows = mark(to_experts(x_ND, at), "experts")
        h = grouped_mm(rows, halves(self.gate_up, rows.dtype), at.ends_E)
        y = mark(grouped_mm(gated(h), self.down.to(h.dtype), at.ends_E), "dispatch")
        y_ND = from_experts(y, routing.weight_NK, at)
        if self.shared is not None:
            y_ND = y_ND + self.shared(mark(x_ND, "experts"))
        return y_ND.view_as(x_BTD), statistics

    def logits(self, x_ND: torch.Tensor) -> torch.Tensor:
        """[N, E] in fp32."""
        # The router is rounded to the compute type first: sharded and unsharded ranks then see the same one.
        return F.linear(x_ND.float(), self.router.to(x_ND.dtype).float())

    def _statistics(self, logits_NE: torch.Tensor, routing: Routing, valid_BT: torch.Tensor) -> Statistics:
        spec, rows = self.spec, valid_BT.shape[0]
        chosen_BTK = routing.chosen_NK.view(*valid_BT.shape, -1)
        valid_BTK = valid_BT[..., None].expand_as(chosen_BTK).long()
        counts_BE = chosen_BTK.new_zeros(rows, spec.n_routed_experts).scatter_add_(
            1, chosen_BTK.flatten(1), valid_BTK.flatten(1)
        )
        balance = z = logits_NE.new_zeros(())
        if spec.router_aux_loss_coef > 0:
            scores_BTE = routing.scores_NE.view(*valid_BT.shape, -1)
            balance = balance_loss(scores_BTE, counts_BE, valid_BT, spec.num_experts_per_tok)
        if spec.router_z_loss_coef > 0:
            z = z_loss(logits_NE, valid_BT.flatten())
        return Statistics(counts_BE.sum(0), balance, z)

    @torch.no_grad()
    def update_bias(self, counts_E: torch.Tensor, rate: float) -> None:
        """Once an optimizer step, from the counts of the whole global batch: ``rate`` up where too few tokens came, down where
        too many, and re-centred so that the bias cannot drift."""
        counts = counts_E.to(self.bias)
        self.bias += rate * torch.sign(counts.mean() - counts)
        self.bias -= self.bias.mean()

    def logical_matrices(self) -> dict[str, Split]:
        """Each expert's gate, up and down."""
        return {"gate_up": gate_and_up, "down": matrices}

"""The decoder: embedding, blocks, norm, head, and modules that predict further tokens.

Legend: B rows, T positions, D hidden size, V vocabulary, L mixture-of-experts layers, E experts.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from workers.model.attention import Angles, make_attention
from workers.model.dropout import Noise, dropped
from workers.model.feed_forward import SwiGLU
from workers.model.inputs import Input
from workers.model.loss import IGNORED, linear_cross_entropy
from workers.model.moe import MoE, Statistics
from workers.model.norm import RMSNorm
from workers.model.rope import rope_angles
from workers.model.sight import Sight
from workers.model.spec import ModelSpec
from workers.muon import Matrices, Split
from workers.timing import blocks_apart, mark


class Objective(NamedTuple):
    """How the loss is computed; see ``linear_cross_entropy``."""

    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    compiled: bool = False


class Output(NamedTuple):
    """Sums over a micro-batch's targets, scalars in fp32."""

    objective: torch.Tensor
    """What training lowers. Auxiliary losses are in it, each as its mean times the number of targets: divided by the global
    batch's targets, every part is a mean."""
    cross_entropy: torch.Tensor
    """Plain, nats; without gradient."""
    counts_LE: torch.Tensor
    """Valid tokens that chose each expert."""
    balance: torch.Tensor
    """The balance losses of all layers, unweighted; as ``objective`` counts them."""
    further: torch.Tensor
    """Cross-entropy of multi-token prediction, the mean of its modules."""


class Block(nn.Module):
    """(x, positions' angles, what is seen of which document) -> (x, the router's statistics; None in a dense layer)."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.pattern = spec.pattern(layer)
        self.attention_norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.attention = make_attention(spec, layer)
        self.feed_forward_norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        dense = layer < spec.dense_layers or not spec.n_routed_experts
        self.feed_forward: SwiGLU | MoE = SwiGLU(spec.hidden_size, spec.intermediate_size) if dense else MoE(spec)

    def forward(
        self, x_BTD: torch.Tensor, angles: Angles, sight: Sight, valid_BT: torch.Tensor, noise: Noise | None
    ) -> tuple[torch.Tensor, Statistics | None]:
        x_BTD = mark(x_BTD, "attention")
        x_BTD = x_BTD + dropped(self.attention(self.attention_norm(x_BTD), angles, sight), noise, 0)
        x_BTD = mark(x_BTD, "experts")
        h_BTD = self.feed_forward_norm(x_BTD)
        if isinstance(self.feed_forward, SwiGLU):
            return mark(x_BTD + dropped(self.feed_forward(h_BTD), noise, 1), "rest"), None
        y_BTD, statistics = self.feed_forward(h_BTD, valid_BT)
        return mark(x_BTD + dropped(y_BTD, noise, 1), "rest"), statistics


class Predictor(nn.Module):
    """Multi-token prediction (arXiv 2412.19437, 2.2): from what is known of the token before, and one further token, to a
    prediction of the next."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embedding_norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.hidden_norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.projection = nn.Parameter(torch.empty(spec.hidden_size, 2 * spec.hidden_size))
        self.block = Block(spec, spec.num_hidden_layers)
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)

    def forward(
        self,
        x_BTD: torch.Tensor,
        embedded_BTD: torch.Tensor,
        angles: Angles,
        sight: Sight,
        valid_BT: torch.Tensor,
        noise: Noise | None,
    ) -> tuple[torch.Tensor, torch.Tensor, Statistics | None]:
        """x for the next predictor, x for the head, and the block's statistics."""
        joined = torch.cat([self.hidden_norm(x_BTD), self.embedding_norm(embedded_BTD)], dim=-1)
        x_BTD, statistics = self.block(F.linear(joined, self.projection.to(x_BTD.dtype)), angles, sight, valid_BT, noise)
        return x_BTD, self.norm(x_BTD), statistics

    def logical_matrices(self) -> dict[str, Split]:
        return {"projection": lambda weight: [Matrices(weight)]}


class Decoder(nn.Module):
    """The root's own parameters are used inside ``forward`` only, so that sharding wrappers can gather them."""

    def __init__(self, spec: ModelSpec, vocab_size: int, dtype: torch.dtype, objective: Objective = Objective()) -> None:
        super().__init__()
        self.spec, self.vocab_size, self.dtype, self.objective = spec, vocab_size, dtype, objective
        self.embedding = nn.Parameter(torch.empty(vocab_size, spec.hidden_size))
        self.blocks = nn.ModuleList(Block(spec, layer) for layer in range(spec.num_hidden_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.head = None if spec.tie_word_embeddings else nn.Parameter(torch.empty(vocab_size, spec.hidden_size))
        self.predictors = nn.ModuleList(Predictor(spec) for _ in range(spec.num_nextn_predict_layers))

    @property
    def all_blocks(self) -> list[Block]:
        """From the bottom, those of the predictors last."""
        return [module for module in self.modules() if isinstance(module, Block)]

    @property
    def experts(self) -> list[MoE]:
        """The mixture-of-experts layers, from the bottom."""
        return [block.feed_forward for block in self.all_blocks if isinstance(block.feed_forward, MoE)]

    def forward(self, batch: Input, *, logits: bool = False) -> Output | torch.Tensor:
        """The losses; with ``logits`` those alone, [B, T, V] in fp32."""
        x_BTD, statistics = self._hidden(batch)
        if logits:
            return F.linear(self.norm(x_BTD), self._head.to(self.dtype)).float()
        objective, ce = self._loss(self.norm(x_BTD), batch.targets_BT)
        targets = (batch.targets_BT != IGNORED).sum()
        further = torch.zeros_like(ce)
        if self.predictors and torch.is_grad_enabled():
            lowered, further = self._further(x_BTD, batch, statistics)
            objective = objective + self.spec.mtp_loss_coef * lowered
        counts = [each.counts_E for each in statistics]
        counts_LE = torch.stack(counts) if counts else x_BTD.new_zeros(0, self.spec.n_routed_experts, dtype=torch.long)
        # Their means over valid tokens, counted as if over targets.
        share = targets / batch.valid_BT.sum().clamp(min=1)
        balance = share * sum((each.balance for each in statistics), torch.zeros_like(ce))
        z = share * sum((each.z for each in statistics), torch.zeros_like(ce))
        objective = objective + self.spec.router_aux_loss_coef * balance + self.spec.router_z_loss_coef * z
        return Output(objective, ce, counts_LE, balance.detach(), further)

    @property
    def _head(self) -> nn.Parameter:
        return self.embedding if self.head is None else self.head

    def _hidden(self, batch: Input) -> tuple[torch.Tensor, list[Statistics]]:
        x_BTD = F.embedding(batch.tokens_BT, self.embedding).to(self.dtype)
        angles = rope_angles(batch.positions_BT, self.spec, self.dtype)
        statistics = []
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            noise = None if batch.noise is None else batch.noise.at(layer)
            with blocks_apart():
                x_BTD, of_layer = block(x_BTD, angles, batch.sights[block.pattern], batch.valid_BT, noise)
            if of_layer is not None:
                statistics.append(of_layer)
        return x_BTD, statistics

    def _loss(self, x_BTD: torch.Tensor, targets_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x_ND = mark(x_BTD, "loss").flatten(0, 1)
        objective, ce = linear_cross_entropy(x_ND, self._head, targets_BT.flatten(), **self.objective._asdict())
        return mark(objective, "rest"), ce

    def _further(self, x_BTD: torch.Tensor, batch: Input, statistics: list[Statistics]) -> tuple[torch.Tensor, torch.Tensor]:
        """Objective and plain cross-entropy of the predictors, the mean of them; their statistics join the others."""
        angles = rope_angles(batch.positions_BT, self.spec, self.dtype)
        tokens_BT, targets_BT = batch.tokens_BT, batch.targets_BT
        objective, ce = x_BTD.new_zeros(2, dtype=torch.float32).unbind()
        for depth, predictor in enumerate(self.predictors):
            assert isinstance(predictor, Predictor)
            tokens_BT = F.pad(tokens_BT[:, 1:], (0, 1))
            # A target one token further, where no border of a document lies between.
            targets_BT = torch.where(
                targets_BT == IGNORED, IGNORED, F.pad(batch.targets_BT[:, depth + 1 :], (0, depth + 1), value=IGNORED)
            )
            embedded_BTD = F.embedding(tokens_BT, self.embedding).to(self.dtype)
            noise = None if batch.noise is None else batch.noise.at(len(self.blocks) + depth)
            sight = batch.sights[predictor.block.pattern]
            with blocks_apart():
                x_BTD, y_BTD, of_layer = predictor(x_BTD, embedded_BTD, angles, sight, batch.valid_BT, noise)
            if of_layer is not None:
                statistics.append(of_layer)
            lowered, plain = self._loss(y_BTD, targets_BT)
            objective, ce = objective + lowered, ce + plain
        return objective / len(self.predictors), ce / len(self.predictors)

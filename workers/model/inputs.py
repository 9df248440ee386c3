"""One micro-batch on the device, made from the data room's rows.

Legend: B rows, T positions.
"""

from typing import NamedTuple

import torch

from data.dataset import Batch
from workers.model.dropout import Noise
from workers.model.loss import IGNORED
from workers.model.sight import Sight, sights
from workers.model.spec import ModelSpec


class Input(NamedTuple):
    """What the decoder reads."""

    tokens_BT: torch.Tensor
    positions_BT: torch.Tensor
    """Restart in each document."""
    sights: dict[str, Sight]
    """What queries see, by the pattern of the layer."""
    valid_BT: torch.Tensor
    """False on padding."""
    targets_BT: torch.Tensor
    """The next token of the same document, else ``IGNORED``."""
    noise: Noise | None = None
    """Dropout's draws; None drops nothing."""


def packed_rows(
    spec: ModelSpec, batch: Batch, device: torch.device, dtype: torch.dtype, *, seed: int = 0, dropout: float = 0.0
) -> Input:
    """A micro-batch of packed documents, for attention in ``dtype``. Copies to the device wait for nothing."""
    tokens, positions = torch.from_numpy(batch.tokens).long(), torch.from_numpy(batch.positions).long()
    documents = torch.from_numpy(batch.document_ids).long()
    targets = torch.full_like(tokens, IGNORED)
    targets[:, :-1] = torch.where(torch.from_numpy(batch.target_mask), tokens[:, 1:], IGNORED)
    seen = sights(spec, documents, device, dtype)
    noise = None
    if dropout:
        samples = torch.from_numpy(batch.samples).to(device, non_blocking=True)
        noise = Noise.of_rows(seed, samples, tokens.shape[1], dropout)
    tokens, positions, valid, targets = (x.to(device, non_blocking=True) for x in (tokens, positions, documents >= 0, targets))
    return Input(tokens, positions, seen, valid, targets, noise)


def without_context(spec: ModelSpec, batch: Batch, device: torch.device, dtype: torch.dtype) -> Input:
    """The same targets, but every token is a document of its own at position 0."""
    rows = packed_rows(spec, batch, device, dtype)
    alone = sights(spec, torch.from_numpy(batch.document_ids), device, dtype, one_token=True)
    return rows._replace(positions_BT=torch.zeros_like(rows.positions_BT), sights=alone)


def whole_rows(spec: ModelSpec, tokens_BT: torch.Tensor, device: torch.device, dtype: torch.dtype) -> Input:
    """Rows of one document each, without targets."""
    seen = sights(spec, torch.zeros_like(tokens_BT, device="cpu"), device, dtype)
    tokens_BT = tokens_BT.to(device)
    positions_BT = torch.arange(tokens_BT.shape[1], device=device).expand(tokens_BT.shape)
    valid_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    return Input(tokens_BT, positions_BT, seen, valid_BT, torch.full_like(tokens_BT, IGNORED))

"""Activation checkpointing by a budget of bytes: each block is measured without running it, then given a mode.

Legend: B rows, T positions, D hidden size.
"""

from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from data.dataset import Batch
from workers.budget import choose
from workers.model.decoder import Block
from workers.model.footprint import Mode
from workers.model.inputs import packed_rows
from workers.model.rope import rope_angles
from workers.recompute import measure
from workers.spec import TrainSpec


def checkpointing(spec: TrainSpec, device: torch.device, dtype: torch.dtype, *, gathered: bool = False) -> list[Mode]:
    """Each block's mode, from the bottom: the spec's own, or chosen so that what the blocks keep of one micro-batch stays
    within ``activation_bytes``.

    ``gathered``: the blocks compute with weights that are in ``dtype`` already. Raises RecomputeBudgetTooSmall.
    """
    training, layers = spec.training, spec.model.num_hidden_layers + spec.model.num_nextn_predict_layers
    if training.activation_bytes is None:
        return [training.activation_checkpointing] * layers
    return choose(kept_bytes(spec, device, dtype, gathered=gathered), training.activation_bytes)


def kept_bytes(spec: TrainSpec, device: torch.device, dtype: torch.dtype, *, gathered: bool = False) -> list[dict[Mode, int]]:
    """What each block, from the bottom, keeps of a micro-batch of packed rows for its backward pass."""
    model, adaptive = spec.model, spec.training.adaptive_dropout
    dropout = model.dropout if adaptive is None else adaptive.high
    inputs = packed_rows(model, _two_documents_a_row(spec), device, dtype, seed=spec.training.seed, dropout=dropout)
    angles = rope_angles(inputs.positions_BT, model, dtype)
    noise = None if inputs.noise is None else inputs.noise.at(0)
    fake = FakeTensorMode()

    def faked(value: Any) -> Any:
        return tree_map_only(torch.Tensor, fake.from_tensor, value)

    measured: dict[tuple[int, str, bool], dict[Mode, int]] = {}
    blocks = []
    for layer in range(model.num_hidden_layers + model.num_nextn_predict_layers):
        kind = (model.heads(layer), model.pattern(layer), layer < model.dense_layers)
        if kind not in measured:
            rest = (angles, inputs.sights[model.pattern(layer)], inputs.valid_BT, noise)
            with fake, torch.device(device):
                block = Block(model, layer)
                if gathered:
                    for parameter in block.parameters():
                        parameter.data = parameter.data.to(dtype)
                x_BTD = torch.empty(*inputs.tokens_BT.shape, model.hidden_size, dtype=dtype)
                measured[kind] = measure(block, x_BTD, *faked(rest))
        blocks.append(measured[kind])
    return blocks


def _two_documents_a_row(spec: TrainSpec) -> Batch:
    """A full micro-batch whose rows need masks, as packed ones do."""
    T = spec.data_pipeline.row_length
    shape = (spec.training.micro_batch_size, T)
    alignment = spec.data_pipeline.document_alignment
    border = T // 2 // alignment * alignment
    documents = np.zeros(shape, dtype=np.int32)
    documents[:, border:] = 1
    positions = np.arange(T, dtype=np.int32) - np.where(np.arange(T) < border, 0, border).astype(np.int32)
    return Batch(np.zeros(shape, dtype=np.uint32), documents, np.broadcast_to(positions, shape).copy())

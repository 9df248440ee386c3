"""Rows without a data set."""

import numpy as np

from data.dataset import Batch
from workers.spec import TrainSpec


def two_documents_a_row(spec: TrainSpec, vocab_size: int = 50) -> Batch:
    """A micro-batch of random tokens, each row two documents that begin where the spec lets them."""
    T, alignment = spec.data_pipeline.row_length, spec.data_pipeline.document_alignment
    shape = (spec.training.micro_batch_size, T)
    border = T // 2 // alignment * alignment
    documents = np.zeros(shape, dtype=np.int32)
    documents[:, border:] = 1
    positions = np.concatenate([np.arange(border), np.arange(T - border)]).astype(np.int32)
    tokens = np.random.default_rng(0).integers(0, vocab_size, shape).astype(np.uint32)
    return Batch(tokens, documents, np.tile(positions, (shape[0], 1)))

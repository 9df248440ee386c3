"""Text from a model in training. Every rank takes part in every forward pass, because the weights are sharded."""

import torch

from data.dataset import PackedDataset
from data.tokenizer import Tokenizer
from workers.engine import Engine
from workers.evaluate import HELD_OUT, evenly_spaced


def sample_texts(
    engine: Engine,
    dataset: PackedDataset,
    tokenizer: Tokenizer,
    *,
    count: int = 3,
    prompt_tokens: int = 12,
    new_tokens: int = 48,
    temperature: float = 0.7,
    top_k: int = 20,
) -> list[str]:
    """``count`` texts: the beginnings of held-out rows, continued. A pure function of the weights and the job's seed."""
    rows = dataset.rows(HELD_OUT, evenly_spaced(count, dataset.num_rows(HELD_OUT)))
    prompts_BT = torch.from_numpy(rows.tokens).long()[:, :prompt_tokens]
    tokens_BT = continue_tokens(engine, prompts_BT, new_tokens=new_tokens, temperature=temperature, top_k=top_k)
    return [tokenizer.decode(row) for row in tokens_BT.tolist()]


def continue_tokens(
    engine: Engine, tokens_BT: torch.Tensor, *, new_tokens: int, temperature: float, top_k: int
) -> torch.Tensor:
    """[B, T] -> [B, T + new_tokens], drawn from the ``top_k`` likeliest. Always ``new_tokens`` passes, so that ranks match."""
    generator = torch.Generator().manual_seed(engine.spec.training.seed)
    length = engine.spec.data_pipeline.sequence_length
    for _ in range(new_tokens):
        logits_BV = engine.logits(tokens_BT[:, -length:])[:, -1].float().cpu()
        best = logits_BV.topk(min(top_k, logits_BV.shape[1]), dim=-1)
        drawn = torch.multinomial((best.values / temperature).softmax(-1), 1, generator=generator)
        tokens_BT = torch.cat([tokens_BT, best.indices.gather(1, drawn)], dim=1)
    return tokens_BT

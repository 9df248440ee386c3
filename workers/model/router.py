"""Which experts a token goes to and with what weight, and the two losses that keep a router healthy.

Legend: B rows, T positions, N tokens, E experts, K experts a token, G groups of experts, M experts a group. All in fp32.
"""

from typing import NamedTuple

import torch

from workers.model.spec import ModelSpec

SMALLEST_SUM = 1e-20
"""Added to the chosen scores' sum, as ``transformers`` does: sigmoids may all underflow."""


class Routing(NamedTuple):
    """Of every token."""

    scores_NE: torch.Tensor
    chosen_NK: torch.Tensor
    weight_NK: torch.Tensor


def route(logits_NE: torch.Tensor, bias_E: torch.Tensor, spec: ModelSpec) -> Routing:
    """The bias takes part in the choice only; the weights are the chosen experts' own scores (arXiv 2412.19437, eq. 12-16;
    softmax: OLMoE, arXiv 2409.02060)."""
    scores_NE = logits_NE.sigmoid() if spec.scoring_func == "sigmoid" else logits_NE.softmax(-1)
    chosen_NK = choose(scores_NE.detach() + bias_E, spec.num_experts_per_tok, spec.n_group, spec.topk_group)
    weight_NK = scores_NE.gather(1, chosen_NK)
    if spec.norm_topk_prob:
        weight_NK = weight_NK / (weight_NK.sum(-1, keepdim=True) + SMALLEST_SUM)
    return Routing(scores_NE, chosen_NK, weight_NK * spec.routed_scaling_factor)


def choose(scores_NE: torch.Tensor, k: int, groups: int, best_groups: int) -> torch.Tensor:
    """The ``k`` best experts among those of the ``best_groups`` groups whose two best together score highest."""
    if best_groups < groups:
        scores_NGM = scores_NE.unflatten(-1, (groups, -1))
        group_scores_NG = scores_NGM.topk(2, dim=-1).values.sum(-1)
        best_NG = group_scores_NG.topk(best_groups, dim=-1, sorted=False).indices
        out_NG = torch.ones_like(group_scores_NG, dtype=torch.bool).scatter_(1, best_NG, False)
        scores_NE = scores_NGM.masked_fill(out_NG[..., None], float("-inf")).flatten(1)
    return scores_NE.topk(k, dim=-1, sorted=False).indices


def balance_loss(scores_BTE: torch.Tensor, counts_BE: torch.Tensor, valid_BT: torch.Tensor, k: int) -> torch.Tensor:
    """The sequence-wise balance loss (arXiv 2412.19437, eq. 17-20) of each row times its valid tokens, summed: a scalar.

    ``counts_BE``: the row's valid tokens that chose each expert. 1 a token where scores and choices are uniform. The gradient
    goes through the scores alone.
    """
    share_BTE = scores_BTE / (scores_BTE.sum(-1, keepdim=True) + SMALLEST_SUM)
    shares_BE = (share_BTE * valid_BT[..., None]).sum(1)
    # With T valid tokens in a row, f = E / (K T) counts and P = shares / T; one T cancels.
    per_token_B = scores_BTE.shape[-1] / (k * valid_BT.sum(1).clamp_min(1))
    return (per_token_B[:, None] * counts_BE * shares_BE).sum()


def z_loss(logits_NE: torch.Tensor, valid_N: torch.Tensor) -> torch.Tensor:
    """The squared log-partition of every valid token (ST-MoE, arXiv 2202.08906, eq. 5), summed: a scalar."""
    return (logits_NE.logsumexp(-1).square() * valid_N).sum()

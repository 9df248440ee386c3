"""Which blocks to compute again so that activations fit a budget of bytes. A pure decision, free of torch."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from data.errors import MantaError
from workers.model.footprint import Mode
from workers.sizes import in_words


class RecomputeBudgetTooSmall(MantaError):
    """Not even full recomputation keeps few enough bytes."""

    code: ClassVar[str] = "recompute_budget_too_small"
    status: ClassVar[int] = 422


def choose(kept: Sequence[Mapping[Mode, int]], budget: int) -> list[Mode]:
    """Each block's mode, from the bottom, so that the kept bytes add up to at most ``budget`` with little to compute again.

    ``kept``: what each block keeps by mode, in bytes. Selective comes first on all blocks, for it saves the most bytes by
    time. Bottom blocks go first: what they keep lives longest, and when they are computed again the top's is already freed.

    Raises RecomputeBudgetTooSmall where no choice fits.
    """
    modes: list[Mode] = ["none"] * len(kept)
    total = sum(block["none"] for block in kept)
    lighter: tuple[Mode, ...] = ("selective", "full")
    for mode in lighter:
        for i, block in enumerate(kept):
            if total <= budget:
                return modes
            saved = block[modes[i]] - block[mode]
            if saved > 0:
                modes[i], total = mode, total - saved
    if total > budget:
        raise RecomputeBudgetTooSmall(
            f"activations take {in_words(total)} a micro-batch with everything recomputed, {in_words(total - budget)} more than"
            f" the budget of {in_words(budget)}; raise it, lower micro_batch_size or shorten the sequence",
            pointer="/training/activation_bytes",
        )
    return modes

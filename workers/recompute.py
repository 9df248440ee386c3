"""Activation checkpointing by block (arXiv 1604.06174): what the forward pass keeps, and what the backward pass computes again.

A block's ``forward`` is replaced and no module wrapped, so parameters keep their names. Recomputation must repeat the first
pass exactly: random draws are functions of counters, and buffers such as the router's bias change only between steps. What a
block returns beside its output (expert counts) is taken from the first pass alone.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from workers.model.footprint import Mode

SAVED = frozenset(
    (
        *("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_grouped_mm", "manta::grouped_mm"),
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        *("flash_attn::_flash_attn_varlen_forward", "torch_attn::_varlen_attn"),
        "flex_attention",
        "_c10d_functional::all_to_all_single",
        # Few bytes, and slow to do again: a token's choice of experts and their order.
        *("aten::topk", "aten::sort", "aten::sort.stable"),
    )
)
"""Operators whose results ``selective`` keeps: products, attention, exchanges. Norms, activations, casts and rotations, cheap
but large, are computed again."""


def apply_recompute(blocks: Iterable[nn.Module], modes: Mode | Sequence[Mode]) -> None:
    """Give every block its mode: one for all, or one each, from the bottom. The last call counts.

    Before the first call of the blocks; before or after ``block.compile()`` and ``fully_shard``, which both keep ``forward``.
    """
    blocks = list(blocks)
    each = [modes] * len(blocks) if isinstance(modes, str) else modes
    for block, mode in zip(blocks, each, strict=True):
        block.__dict__.pop("forward", None)
        if mode != "none":
            block.forward = _Checkpointed(block.forward, mode)


def measure(block: nn.Module, x: torch.Tensor, *rest: Any) -> dict[Mode, int]:
    """The bytes that one forward pass of ``block(x, *rest)`` leaves alive for its backward pass, by mode; parameters, ``rest``
    and the block's output not counted. Exact for eager blocks; compiled ones keep less in mode ``none``.

    Nothing is computed or held if block and arguments are made under ``FakeTensorMode``. On the meta device attention is not
    the real device's, and its scores count.
    """
    forward = type(block).forward.__get__(block)
    return {mode: _kept_bytes(forward if mode == "none" else _Checkpointed(forward, mode), x, rest) for mode in get_args(Mode)}


class _Checkpointed:
    """Stands in for a block's ``forward``. Code of ours, not a partial: torch.compile starts to trace at a frame, and skips
    torch's own. The method it holds follows a deep copy of its block."""

    def __init__(self, forward: Callable[..., Any], mode: Mode) -> None:
        self.forward = forward
        self.options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        if mode == "selective":
            self.options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.forward, *args, **self.options, **kwargs)


def _policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator.name() in SAVED else CheckpointPolicy.PREFER_RECOMPUTE


class _Made(TorchDispatchMode):
    """Remembers the storages that operators make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: weakref.WeakValueDictionary[int, torch.UntypedStorage] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        old = {id(storage) for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        self.storages.update({id(storage): storage for storage in _storages(result) if id(storage) not in old})
        return result


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _kept_bytes(forward: Callable[..., Any], x: torch.Tensor, rest: tuple[Any, ...]) -> int:
    leaf = torch.empty_like(x, requires_grad=True)
    with torch.enable_grad(), _Made() as made:
        # Only the graph holds on to the copy, and so only if the backward pass needs it.
        result = forward(leaf.clone(), *rest)
        graph = [value.grad_fn for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        del result
    kept = sum(storage.nbytes() for storage in made.storages.values())
    del graph
    return kept

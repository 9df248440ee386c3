"""Weights and sizes between the decoder and the classes of ``transformers``, in memory."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from workers.hf.config import Config, family_in, from_config, to_config
from workers.hf.errors import PretrainedUnreadable
from workers.hf.families import family_of
from workers.hf.rules import Rule, rules
from workers.model.spec import ModelSpec

TRAINING_ONLY = "predictors."
"""Begins the names of the parameters that no export has."""


def to_hf(
    spec: ModelSpec, vocab_size: int, state: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """``config.json`` and the tensors that ``from_pretrained`` expects, as views or copies of those in ``state``.

    Raises NotExportable: no class computes this model.
    """
    return to_config(spec, vocab_size), dict(exported(spec, vocab_size, state))


def exported(spec: ModelSpec, vocab_size: int, state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of ``to_hf`` one after the other; each of ``state`` is asked for once."""
    given = {name for name in state if not name.startswith(TRAINING_ONLY)}
    known = list(rules(spec, vocab_size, family_of(spec)))
    if given != (named := {rule.name for rule in known if rule.name}):
        raise ValueError(f"the state is not of this spec: {sorted(given ^ named)[:4]} on one side only")
    for rule in known:
        parts = rule.split(state[rule.name] if rule.name else torch.empty(0))
        yield from zip(rule.theirs, parts, strict=True)


def from_hf(config: Config, tensors: Mapping[str, torch.Tensor]) -> tuple[ModelSpec, int, dict[str, torch.Tensor]]:
    """Spec, size of the vocabulary and state. Fields that only training needs have their defaults.

    Raises:
        PretrainedUnreadable: a size or a tensor is missing.
        PretrainedMismatch: the decoder cannot compute this model.
    """
    spec, vocab_size = from_config(config)
    state: dict[str, torch.Tensor] = {}
    for rule in imported(config, spec, vocab_size):
        if missing := [name for name in rule.theirs if name not in tensors]:
            raise PretrainedUnreadable(f"the tensor {missing[0]} is missing")
        state[str(rule.name)] = rule.join([tensors[name] for name in rule.theirs])
    return spec, vocab_size, state


def imported(config: Config, spec: ModelSpec, vocab_size: int) -> Iterator[Rule]:
    """The rules of every parameter that ``from_hf`` gives."""
    interleaved = bool(config.get("rope_interleave", True))
    for rule in rules(spec, vocab_size, family_in(config), interleaved=interleaved):
        if rule.name is not None:
            yield rule

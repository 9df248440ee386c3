"""What Optuna has and does not document. A test fails loudly when an upgrade changes it."""

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

GENERATION = "NSGAIISampler:generation"
"""System attribute of a trial: the generation of Optuna's NSGA-II that it is of, from 0."""


def id_of(trial: FrozenTrial) -> int:
    """By which a sampler asks its storage for a trial; of one that no storage made, -1."""
    return trial._trial_id


def set_constraint(storage: BaseStorage, trial_id: int, name: str, excess: float) -> None:
    """As ``Trial.set_constraint`` does, whose ``Trial`` only Optuna's own loop makes: zero or less is feasible."""
    storage.set_trial_system_attr(trial_id, f"constraints:{name}", excess)

"""What one of Optuna's samplers asks for, given some trials: it sees a study that holds these and the one it is asked for."""

import copy
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NoReturn

import optuna
import xxhash
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuning.compat_optuna import id_of
from tuning.space import Point, Space

Direction = Literal["minimize", "maximize"]

BASE, POINTS = "base", "points"
"""What a suggestion is from that no sampler made: the study's base, and the points that it names."""


@dataclass(frozen=True)
class Suggestion:
    point: Point
    sampler: str
    """What it is from."""
    system: Mapping[str, Any] = field(default_factory=dict)
    """What Optuna's sampler wants to find at the trial later."""


def seed_of(*parts: int | str) -> int:
    """31 bits, which every generator takes."""
    return xxhash.xxh64_intdigest("/".join(map(str, parts)).encode()) & 0x7FFFFFFF


def asked(sampler: BaseSampler, directions: Sequence[Direction], space: Space, trials: Sequence[FrozenTrial]) -> Suggestion:
    """What an Optuna sampler asks for, given these trials."""
    storage = _Given(trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(directions=list(directions), sampler=sampler, storage=storage)
        trial = study.ask()
        params: dict[str, Any] = {}
        for path, distribution in space.distributions.items():
            if space.applies(path, space.decode(params)):
                params[path] = _suggest(trial, path, distribution)
    return Suggestion(space.decode(params), "", storage.asked.system_attrs)


def _suggest(trial: optuna.Trial, path: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case FloatDistribution():
            return trial.suggest_float(path, distribution.low, distribution.high, log=distribution.log, step=distribution.step)
        case IntDistribution():
            return trial.suggest_int(path, distribution.low, distribution.high, log=distribution.log, step=distribution.step)
        case CategoricalDistribution():
            return trial.suggest_categorical(path, distribution.choices)
    raise AssertionError(f"a space has no {type(distribution).__name__}")


class _Given(BaseStorage):
    """Trials as they are, which nobody may change, and the one that is asked for. Optuna's own storage in memory would be
    filled with copies of all trials at every ask, which takes longer than most samplers do."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        self._trials = list(trials)
        self._by_id = {id_of(trial): trial for trial in self._trials}
        self._attributes: dict[str, Any] = {}
        self.asked = FrozenTrial(
            number=len(trials),
            trial_id=max(self._by_id, default=-1) + 1,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )

    # -- the study

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        self._directions = list(directions)
        return 0

    def get_study_id_from_name(self, study_name: str) -> int:
        return 0

    def get_study_name_from_id(self, study_id: int) -> str:
        return "asked"

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._attributes

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._attributes[key] = value

    # -- its trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        self._trials.append(self.asked)
        self._by_id[id_of(self.asked)] = self.asked
        return id_of(self.asked)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._by_id[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        found = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)
        self.asked.distributions[param_name] = distribution
        self.asked.params[param_name] = distribution.to_external_repr(param_value_internal)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)
        self.asked.system_attrs[key] = value

    # -- what no sampler does

    def _never(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("a sampler reads")

    delete_study = set_study_user_attr = get_all_studies = _never
    set_trial_state_values = set_trial_intermediate_value = set_trial_user_attr = _never

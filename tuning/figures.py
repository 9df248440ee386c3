"""A study's figures: Optuna's own, as Plotly's JSON."""

import json
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState

from data.errors import MantaError
from tuning.study import Study


class FigureUnknown(MantaError):
    """There is no figure of that name."""

    code: ClassVar[str] = "figure_unknown"
    status: ClassVar[int] = 404


class TooFewTrials(MantaError):
    """A figure has nothing to show yet."""

    code: ClassVar[str] = "too_few_trials"
    status: ClassVar[int] = 409


def figure(study: Study, name: str) -> dict[str, Any]:
    """
    Raises:
        FigureUnknown, TooFewTrials.
    """
    if name not in FIGURES:
        raise FigureUnknown(f"there is no figure {name!r}; there are {', '.join(FIGURES)}")
    needed, several, draw = FIGURES[name]
    objectives = len(study.spec.objectives)
    if (objectives > 1) != several and several is not None:
        raise FigureUnknown(
            f"{name} is of {'several objectives' if several else 'one objective'}, and the study has {objectives}"
        )
    complete = sum(trial.state is TrialState.COMPLETE for trial in study.trials)
    if complete < needed:
        of = "one complete trial" if needed == 1 else f"{needed} complete trials"
        raise TooFewTrials(f"{name} needs {of}, and the study has {complete}; those that were stopped early do not count")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        drawn: dict[str, Any] = json.loads(draw(study).to_json())
    return drawn


def importances(study: Study) -> dict[str, float]:
    """The share of each parameter in what tells good trials from others (PED-ANOVA, arXiv 2304.10255), of one objective."""
    if sum(trial.state is TrialState.COMPLETE for trial in study.trials) < _IMPORTANCE_TRIALS:
        return {}
    target = None if len(study.spec.objectives) == 1 else _first_objective
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.importance.get_param_importances(study.optuna, evaluator=PedAnovaImportanceEvaluator(), target=target)


_IMPORTANCE_TRIALS = 10


def _first_objective(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[0])


def _importance_figure(study: Study) -> Any:
    return optuna.visualization.plot_param_importances(study.optuna, evaluator=PedAnovaImportanceEvaluator())


def _of_study(draw: Callable[..., Any]) -> Callable[[Study], Any]:
    return lambda study: draw(study.optuna)


def _pareto(study: Study) -> Any:
    names = [each.metric for each in study.spec.objectives]
    return optuna.visualization.plot_pareto_front(study.optuna, target_names=names)


_plots = optuna.visualization

FIGURES: dict[str, tuple[int, bool | None, Callable[[Study], Any]]] = {
    "history": (1, False, _of_study(_plots.plot_optimization_history)),
    "importances": (_IMPORTANCE_TRIALS, False, _importance_figure),
    "parallel": (1, False, _of_study(_plots.plot_parallel_coordinate)),
    "slice": (1, False, _of_study(_plots.plot_slice)),
    "intermediate": (1, False, _of_study(_plots.plot_intermediate_values)),
    "timeline": (1, None, _of_study(_plots.plot_timeline)),
    "pareto": (1, True, _pareto),
}
"""Name -> complete trials that it needs, whether it is of several objectives (None: of any number), and who draws it."""

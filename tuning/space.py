"""The space of a study: which points there are, which parameters a point has, and which job it stands for. Pure.

A point is a mapping of dotted paths to values of the spec, without the parameters that do not apply (``when``).
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import ValidationError

from tuning import expressions, paths
from tuning.parameters import ChoiceParameter, FloatParameter, Parameter, applies, parents_first, same
from tuning.spec import StudySpec
from workers.plan import plan
from workers.spec import TrainSpec

Point = dict[str, Any]


class Space:
    """Parameters, and where they apply. Optuna knows a choice by itself where it is a number, text, true, false or null, and
    else by its JSON."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters: dict[str, Parameter] = {path: parameters[path] for path in parents_first(parameters)}
        """By path; parameters come after those that they depend on."""
        self._choices = {
            path: _labels(parameter.choices)
            for path, parameter in self.parameters.items()
            if isinstance(parameter, ChoiceParameter)
        }

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """By path, in the order of ``parameters``."""
        return {path: self._distribution(path, parameter) for path, parameter in self.parameters.items()}

    def _distribution(self, path: str, parameter: Parameter) -> BaseDistribution:
        if isinstance(parameter, ChoiceParameter):
            return CategoricalDistribution(list(self._choices[path]))
        high = parameter.nearest(parameter.high)  # where the last step ends
        if isinstance(parameter, FloatParameter):
            return FloatDistribution(parameter.low, high, log=parameter.log, step=parameter.step)
        return IntDistribution(parameter.low, high, log=parameter.log, step=parameter.step)

    def applies(self, path: str, point: Mapping[str, Any]) -> bool:
        """Whether a parameter is searched where its parents have the values of ``point``."""
        return applies(self.parameters[path], point)

    def encode(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """As Optuna writes it."""
        return {path: self._encoded(path, value) for path, value in point.items()}

    def _encoded(self, path: str, value: Any) -> Any:
        if path not in self._choices:
            return value
        return next(label for label, choice in self._choices[path].items() if same(choice, value))

    def decode(self, params: Mapping[str, Any]) -> Point:
        """Back from Optuna's, whose steps are rounded otherwise: 0.1 + 2 * 0.1 is not 0.3 there."""
        return {path: self._decoded(path, value) for path, value in params.items()}

    def _decoded(self, path: str, value: Any) -> Any:
        return self._choices[path][value] if path in self._choices else self.parameters[path].nearest(value)


class JobSpace(Space):
    """The space of a study: its points stand for training jobs."""

    def __init__(self, study: StudySpec) -> None:
        super().__init__(study.space)
        self._base = study.base
        self._document = study.base.as_given()
        self._constraints = [(text, expressions.parse(text)) for text in study.constraints]
        self._jobs = study.trials_are_jobs
        self._points = study.points
        self._reasons: dict[str, str | None] = {}

    @cached_property
    def base_point(self) -> Point:
        """What ``base`` says, moved into the space where it lies outside."""
        return self.complete({})

    @cached_property
    def known_points(self) -> dict[str, Point]:
        """``base`` and the points that the study names, by key; without those that are no job."""
        points = [self.base_point, *(self.complete(point) for point in self._points)]
        return {key(point): point for point in points if self.reason_against(point) is None}

    def complete(self, known: Mapping[str, Any]) -> Point:
        """The point with the values of ``known``, and those of ``base`` where it has none."""
        point: Point = {}
        for path, parameter in self.parameters.items():
            if self.applies(path, point):
                point[path] = parameter.nearest(known[path] if path in known else self._of_base(path))
        return point

    def _of_base(self, path: str) -> Any:
        try:
            value = paths.get(self._base, path)
        except LookupError:
            return None
        parameter = self.parameters[path]
        if not isinstance(parameter, ChoiceParameter) or same(parameter.nearest(value), value):
            return value
        return next((choice for choice in parameter.choices if self._comes_to(path, choice, value)), None)

    def _comes_to(self, path: str, choice: Any, value: Any) -> bool:
        """Whether a choice is what a job has there: of a block it may leave out what is as by default."""
        try:
            return bool(paths.get(TrainSpec.model_validate(self.document({path: choice})), path) == value)
        except (ValidationError, LookupError):
            return False

    def document(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The job that a point stands for, as a user would write it."""
        document: Any = self._document
        for path, value in point.items():
            document = paths.put(document, path, value, self._base)
        return dict(document)

    def job(self, point: Mapping[str, Any]) -> TrainSpec:
        """
        Raises:
            ValueError: it is no job, or not one that the study's constraints let through; the message says why.
        """
        try:
            job = TrainSpec.model_validate(self.document(point))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where}: {first['msg']}" if where else str(first["msg"])) from None
        for text, tree in self._constraints:
            try:
                holds = expressions.evaluate(tree, lambda path: paths.get(job, path))
            except (TypeError, ArithmeticError, LookupError) as error:
                raise ValueError(f"{text}: cannot be told: {error}") from None
            if not holds:
                raise ValueError(f"{text} does not hold")
        if problems := plan(job).problems:
            raise ValueError(f"{problems[0].pointer}: {problems[0].detail}")
        if job.world_size > 1 and not self._jobs:
            raise ValueError(f"a trial inside the study has one worker, not {job.world_size}")
        return job

    def reason_against(self, point: Mapping[str, Any]) -> str | None:
        """Why a point is no job; None: it is one. Kept, for a grid comes by its points again at every ask."""
        name = key(point)
        if name not in self._reasons:
            try:
                self.job(point)
                self._reasons[name] = None
            except ValueError as error:
                self._reasons[name] = str(error)
        return self._reasons[name]


def _labels(choices: Sequence[Any]) -> dict[Any, Any]:
    """Optuna's name of each choice."""
    plain = all(choice is None or isinstance(choice, bool | int | float | str) for choice in choices)
    if plain and len(set(choices)) == len(choices):  # 1, 1.0 and true are one key
        return {choice: choice for choice in choices}
    return {json.dumps(choice, sort_keys=True): choice for choice in choices}


def key(point: Mapping[str, Any]) -> str:
    """Two points are one when their keys are."""
    return json.dumps(point, sort_keys=True)

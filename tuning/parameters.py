"""What a parameter of a search space is: a range or a choice, and where it applies. Pydantic and nothing heavy.

Names follow Optuna.
"""

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from data.spec_base import Misfit, Spec
from tuning.paths import Path

When = dict[Path, JsonValue]
"""Values of other parameters: a value, or a list of values, for each. The parameter is there only where all of them hold."""


class _Parameter(Spec):
    when: When = Field(default_factory=dict)
    """Where it is searched; elsewhere the field keeps what ``base`` says."""


class _Range(_Parameter):
    low: float
    high: float
    log: bool = False
    step: float | None = None

    def _require_range(self, stepped: bool) -> None:
        if self.low > self.high:
            raise Misfit(f"low {self.low:g} is more than high {self.high:g}", "low", "high")
        if self.log and self.low <= 0:
            raise Misfit(f"log needs a positive low, not {self.low:g}", "low")
        if self.log and stepped:
            raise Misfit("log and step exclude each other", "step", "log")

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that between them show whether the field takes what is searched."""
        return self.low, self.high

    @property
    def count(self) -> int | None:
        """How many values there are; None: it has no step. The last step may end before ``high``."""
        if self.step is None:
            return None
        low, high, step = self._exactly()
        return int((high - low) / step) + 1

    def values(self) -> Iterator[Any]:
        """Of a range with a step, from the lowest."""
        assert self.count is not None, "it has no step"
        return map(self.at, range(self.count))

    def at(self, index: int) -> Any:
        """The value ``index`` steps above the lowest."""
        low, _, step = self._exactly()
        return type(self.low)(low + index * step)

    def _exactly(self) -> tuple[Decimal, Decimal, Decimal]:
        """``low``, ``high`` and ``step`` as they are written: 0.8 + 0.05 is 0.85."""
        return Decimal(str(self.low)), Decimal(str(self.high)), Decimal(str(self.step))

    def nearest(self, value: Any) -> Any:
        """The value of the range that is nearest to ``value``, of the range's own type (0 is no 0.0 in a journal); the lowest
        where that is no number."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return self.low
        inside, type_ = min(max(value, self.low), self.high), type(self.low)
        if self.step is None:
            return type_(inside)
        low, high, step = self._exactly()
        steps = min(round((Decimal(str(inside)) - low) / step), int((high - low) / step))
        return type_(low + steps * step)


class FloatParameter(_Range):
    type: Literal["float"]
    low: float
    high: float
    log: bool = False
    """Search the logarithm; ``low`` must be positive."""
    step: float | None = Field(default=None, gt=0)
    """Only ``low``, ``low + step``, ... up to ``high``."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        self._require_range(self.step is not None)
        return self


class IntParameter(_Range):
    """``low``, ``low + step``, ... up to ``high``, which is among the values where a step ends there."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        self._require_range(self.step != 1)
        return self


class ChoiceParameter(_Parameter):
    type: Literal["choice"]
    choices: tuple[JsonValue, ...] = Field(min_length=1)
    """Numbers, text, ``null``, or whole blocks of the spec."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        for number, choice in enumerate(self.choices):
            if any(same(choice, other) for other in self.choices[:number]):
                raise Misfit(f"{json.dumps(choice)} is given twice", "choices")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that between them show whether the field takes what is searched."""
        return self.choices

    @property
    def count(self) -> int:
        return len(self.choices)

    def values(self) -> Iterator[Any]:
        return iter(self.choices)

    def nearest(self, value: Any) -> Any:
        return next((choice for choice in self.choices if same(choice, value)), self.choices[0])


Parameter = Annotated[FloatParameter | IntParameter | ChoiceParameter, Field(discriminator="type")]


def same(one: Any, other: Any) -> bool:
    """Whether two values of a spec are one: 1 and 1.0 are, a list and a tuple are, 1 and true are not."""
    return _text(one) == _text(other)


def _text(value: Any) -> str:
    return json.dumps(_whole(value), sort_keys=True, default=str)


def _whole(value: Any) -> Any:
    """With 1 for 1.0, however deep."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    return {name: _whole(item) for name, item in value.items()} if isinstance(value, dict) else value


def alternatives(values: JsonValue) -> list[JsonValue]:
    """What ``when`` lets through."""
    return values if isinstance(values, list) else [values]


def applies(parameter: "Parameter", point: Mapping[str, Any]) -> bool:
    """Whether it is searched where its parents have the values of ``point``."""
    return all(
        parent in point and any(same(point[parent], value) for value in alternatives(values))
        for parent, values in parameter.when.items()
    )


NAMED_NOWHERE = object()
"""Stands for every value of a parent that nothing depends on."""


def grid_size(space: Mapping[str, "Parameter"], most: int, point: Mapping[str, Any] | None = None) -> int:
    """How many points there are; when they are more than ``most``, some number above that.

    Args:
        space: by path, parents first, all with choices or a step.
        point: the values of parents that are decided.
    """
    point = point or {}
    if not space:
        return 1
    path, parameter = next(iter(space.items()))
    rest = {other: each for other, each in space.items() if other != path}
    assert parameter.count is not None, "it has no step"
    if not applies(parameter, point):
        return grid_size(rest, most, point)
    if not any(path in each.when for each in rest.values()):
        return parameter.count * grid_size(rest, most, point)
    wanted = [value for each in rest.values() if path in each.when for value in alternatives(each.when[path])]
    named = {_text(value): value for value in wanted if same(parameter.nearest(value), value)}
    found = (parameter.count - len(named)) * grid_size(rest, most, {**point, path: NAMED_NOWHERE})
    for value in named.values():
        found += grid_size(rest, most, {**point, path: value})
        if found > most:
            break
    return found


def parents_first(space: Mapping[str, "Parameter"]) -> list[str]:
    """
    Raises:
        Misfit: parameters depend on each other in a circle, or on what is no parameter.
    """
    done: list[str] = []
    rest = dict(space)
    for path, parameter in space.items():
        for parent in parameter.when:
            if parent not in space:
                raise Misfit(f"{parent} is not in the space", ("space", path, "when", parent))
    while rest:
        ready = [path for path, parameter in rest.items() if all(parent in done for parent in parameter.when)]
        if not ready:
            raise Misfit(f"{', '.join(rest)} depend on each other in a circle", *(("space", path, "when") for path in rest))
        done += ready
        for path in ready:
            del rest[path]
    return done

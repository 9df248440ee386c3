"""Objectives with known minima, which are searched in the place of training jobs.

Branin and Hartmann as in Dixon and Szegő, Towards Global Optimisation 2 (1978), Rosenbrock's valley in five dimensions on the
wide box [-5, 10]; their multi-fidelity forms by Kandasamy et al. (arXiv 1703.06240), with one fidelity for all terms. The
conditional one is our own.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution

from tuning.parameters import ChoiceParameter, FloatParameter, IntParameter, Parameter
from tuning.space import Point, Space

ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
A3 = np.array([[3.0, 10, 30], [0.1, 10, 35], [3.0, 10, 30], [0.1, 10, 35]])
P3 = 1e-4 * np.array([[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]])
A6 = np.array([[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]])
P6 = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
FIDELITY_COST = 0.1
"""By how much a term's weight is off at fidelity 0."""


@dataclass(frozen=True)
class Function:
    parameters: Mapping[str, Parameter]
    value: Callable[[Point, float], float]
    """(point, fidelity in [0, 1]); those of one fidelity do not look at it."""
    minimum: float
    """At fidelity 1."""
    best: Point
    """Where it is."""

    def regret(self, point: Point) -> float:
        return self.value(point, 1.0) - self.minimum

    def distributions_at(self, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """Of the parameters that apply, as far as ``params`` tell."""
        space = Space(self.parameters)
        return {path: each for path, each in space.distributions.items() if space.applies(path, params)}


def box(low: float, high: float, dims: int) -> dict[str, Parameter]:
    return {f"x{i}": FloatParameter(type="float", low=low, high=high) for i in range(dims)}


def when(parameter: Parameter, *optimizers: str) -> Parameter:
    """A spec's ``when`` names fields of a training job, and a function has none: so it is not validated."""
    return parameter.model_copy(update={"when": {"optimizer": list(optimizers)}})


CONDITIONAL: dict[str, Parameter] = {
    "optimizer": ChoiceParameter(type="choice", choices=("sgd", "adam", "muon")),
    "lr": FloatParameter(type="float", low=1e-5, high=1.0, log=True),
    "depth": IntParameter(type="int", low=1, high=12),
    "momentum": when(FloatParameter(type="float", low=0.0, high=0.99), "sgd", "muon"),
    "decay": when(FloatParameter(type="float", low=1e-6, high=1e-1, log=True), "adam", "sgd"),
    "one_minus_beta2": when(FloatParameter(type="float", low=1e-4, high=1e-1, log=True), "adam"),
    "warmup": when(IntParameter(type="int", low=1, high=1000, log=True), "adam"),
    "ns_steps": when(IntParameter(type="int", low=1, high=10), "muon"),
}


def branin(point: Point) -> float:
    x, y = point["x0"], point["x1"]
    b, c, t = 5.1 / (4 * math.pi**2), 5 / math.pi, 1 / (8 * math.pi)
    return float((y - b * x * x + c * x - 6) ** 2 + 10 * (1 - t) * math.cos(x) + 10)


def hartmann(point: Point, fidelity: float) -> float:
    """Of three or six dimensions."""
    x = _vector(point)
    a, p = (A3, P3) if len(x) == 3 else (A6, P6)
    return float(-(ALPHA - FIDELITY_COST * (1 - fidelity)) @ np.exp(-(a * (x - p) ** 2).sum(1)))


def rosenbrock(point: Point) -> float:
    x = _vector(point)
    return float((100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum())


def conditional(point: Point) -> float:
    """Like a loss over three optimizers: valleys (learning rate against depth or momentum), integers, logarithms, parameters
    that only some of them have. The best of Muon is 0.05, of SGD a little over 0.15."""
    rate, depth = math.log10(point["lr"]), (point["depth"] - 6) / 6
    if point["optimizer"] == "adam":
        u = rate + 3 + 0.5 * depth  # a deeper net wants a smaller step
        decay, beta = math.log10(point["decay"]) + 3, math.log10(point["one_minus_beta2"]) + 2
        warmup = math.log10(point["warmup"]) - 2
        return float(u**2 + 0.5 * depth**2 + 0.2 * decay**2 + 0.3 * (beta - 0.3 * u) ** 2 + 0.3 * (warmup - 0.4 * u) ** 2)
    momentum = point["momentum"] - 0.9
    if point["optimizer"] == "sgd":
        u = rate - math.log10(1 - point["momentum"]) - 0.3  # the effective step is lr / (1 - momentum)
        decay = math.log10(point["decay"]) + 4
        return float(0.15 + 0.6 * u**2 + 0.5 * (depth + 0.2) ** 2 + 0.1 * decay**2 + 0.5 * momentum**2)
    steps = point["ns_steps"] - 5
    return float(0.05 + 0.8 * (rate + 1.7) ** 2 + 0.6 * depth**2 + 2 * momentum**2 + 0.01 * steps**2)


def _vector(point: Point) -> npt.NDArray[np.float64]:
    return np.array([point[f"x{i}"] for i in range(len(point))])


def _named(*values: float) -> Point:
    return {f"x{i}": value for i, value in enumerate(values)}


BEST3, BEST6 = (0.114614, 0.555649, 0.852547), (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)

FUNCTIONS = {
    "branin": Function(
        {"x0": FloatParameter(type="float", low=-5, high=10), "x1": FloatParameter(type="float", low=0, high=15)},
        lambda point, fidelity: branin(point),
        0.39788735772973816,
        _named(math.pi, 2.275),
    ),
    "hartmann3": Function(box(0, 1, 3), hartmann, -3.8627797869493365, _named(*BEST3)),
    "hartmann6": Function(box(0, 1, 6), hartmann, -3.3223680114155147, _named(*BEST6)),
    "rosenbrock5": Function(box(-5, 10, 5), lambda point, fidelity: rosenbrock(point), 0.0, _named(*[1.0] * 5)),
    "conditional": Function(
        CONDITIONAL,
        lambda point, fidelity: conditional(point),
        0.0,
        {"optimizer": "adam", "lr": 1e-3, "depth": 6, "decay": 1e-3, "one_minus_beta2": 1e-2, "warmup": 100},
    ),
}

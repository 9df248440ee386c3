"""Targets by language and by domain, fitted to the cells that there are.

The fit is the table nearest to the sources' weights, in information, that has the targets as its margins: iterative
proportional fitting (Deming and Stephan 1940; Csiszar, "I-divergence geometry", Annals of Probability 1975). Shares are whole
parts of a denominator that the targets divide, so margins are met exactly; every cell has one part at least. Targets that
need a finer one than there is are rounded, and the log says to what. No NumPy: specs are checked with it.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from math import floor, lcm
from typing import NamedTuple

from pydantic import Field, model_validator

from data.flow import SINK, SOURCE, Arc, cheapest_flow
from data.spec_base import Misfit, Spec, Weight

OTHER = "other"
"""The target of all languages, or domains, that have none of their own."""
CODE = "code"

# Shares are multiples of 1 / denominator. The order repeats after as many batches at most, and is searched for.
_LEAST_DENOMINATOR, _GREATEST_DENOMINATOR = 1_000, 100_000
_COARSE_DENOMINATOR = 10_000
"""What targets, and weights, are rounded to where they need a finer one than the greatest."""
_ITERATIONS, _TOLERANCE = 10_000, 1e-12
_FINE = 1 << 20

log = logging.getLogger(__name__)

Cells = Mapping[tuple[str, str], float]
"""Weight of each (language, domain)."""


class MixtureSpec(Spec):
    """What each language and each domain is of every global batch, whatever the weights of the sources add up to. The cells are
    fitted to both at once; where they leave a choice, it is nearest to the sources' weights."""

    languages: dict[str, Weight] = Field(default_factory=dict)
    """Relative to each other; ``other`` is the target of all languages that are not named. Empty: as the weights have it."""
    domains: dict[str, Weight] = Field(default_factory=dict)
    """The same for domains."""
    code_language: str | None = None
    """The language that sources of the domain ``code`` count as; None: the one that they state."""

    @model_validator(mode="after")
    def _has_targets(self) -> "MixtureSpec":
        if not self.languages and not self.domains:
            raise Misfit("a mixture needs targets for languages, for domains or for both", "languages", "domains")
        return self

    def lines(self, language: str, domain: str) -> tuple[str, str]:
        """The language and the domain whose targets a cell goes to."""
        spoken = self.code_language if self.code_language is not None and domain == CODE else language
        return _line(spoken, self.languages), _line(domain, self.domains)

    def fit(self, cells: Cells) -> dict[tuple[str, str], int]:
        """Parts of each cell.

        Raises:
            Infeasible: the message names the nearest mix that there is.
        """
        weighed = tuple(_Cell(*self.lines(*cell), weight) for cell, weight in cells.items())
        return dict(zip(cells, _fit(weighed, tuple(self.languages.items()), tuple(self.domains.items())), strict=True))

    def without(self, cells: Cells, gone: Collection[tuple[str, str]]) -> str:
        """What is left to do where some cells turn out to be empty, as a sentence."""
        others = {cell: weight for cell, weight in cells.items() if cell not in gone}
        lacking = "it" if len(gone) == 1 else " and ".join("/".join(cell) for cell in gone)
        if not others:
            return f"without {lacking} there is nothing to mix"
        try:
            self.fit(others)
        except Infeasible as error:
            return f"without {lacking}, {error}"
        sources = "its sources" if len(gone) == 1 else "their sources"
        return f"the mixture can be met without {lacking}: leave {sources} out"


class _Cell(NamedTuple):
    """The lines that a cell counts as."""

    language: str
    domain: str
    weight: float


class Infeasible(ValueError):
    """No mix of the cells meets the targets, or none in which every cell has a part.

    ``nearest``: what each language and each domain has, in thousandths, in the feasible mix that is nearest to the targets.
    """

    def __init__(self, detail: str, nearest: tuple[dict[str, int], dict[str, int]]) -> None:
        super().__init__(detail)
        self.nearest = nearest


def exact_shares(weights: Sequence[float | Fraction], most: int = _GREATEST_DENOMINATOR) -> list[Fraction]:
    """Weights as exact fractions that sum to 1.

    0.45, 0.35, 0.2 become 9/20, 7/20, 4/20. Weights whose common denominator is over ``most`` are rounded to multiples of
    1 / ``most``, or 1 / 10,000 if that is more, by largest remainder, each at least one of them.
    """
    exact = _unrounded(weights)
    if lcm(*(weight.denominator for weight in exact)) <= most:
        return exact
    coarse = min(most, _COARSE_DENOMINATOR)
    parts = [max(1, floor(weight * coarse)) for weight in exact]
    by_remainder = sorted(range(len(exact)), key=lambda c: parts[c] - exact[c] * coarse)
    for c in by_remainder[: max(0, coarse - sum(parts))]:
        parts[c] += 1
    return [Fraction(part, sum(parts)) for part in parts]


def _unrounded(weights: Iterable[float | Fraction]) -> list[Fraction]:
    exact = [Fraction(str(weight)) for weight in weights]
    return [weight / sum(exact) for weight in exact]


def _common_denominator(targets: Iterable[Mapping[str, float]]) -> int:
    return lcm(*(share.denominator for given in targets for share in _unrounded(given.values())))


def _line(name: str, targets: Mapping[str, float]) -> str:
    return OTHER if name not in targets and OTHER in targets else name


@lru_cache(maxsize=16)
def _fit(
    cells: tuple[_Cell, ...], languages: tuple[tuple[str, float], ...], domains: tuple[tuple[str, float], ...]
) -> tuple[int, ...]:
    table = _Table(cells, (dict(languages), dict(domains)))
    table.require_feasible()
    if _common_denominator(table.stated) > _GREATEST_DENOMINATOR:
        log.warning(
            "the targets of the mixture have no common denominator up to %d; met are %s", _GREATEST_DENOMINATOR, table.met()
        )
    return tuple(table.rounded(table.fitted()))


def _denominator(targets: tuple[dict[str, float], dict[str, float]]) -> int:
    """Of the parts: the least that all targets are multiples of and that is fine enough for small cells."""
    common = _common_denominator(targets)
    if common > _GREATEST_DENOMINATOR:
        return _COARSE_DENOMINATOR
    return common * -(-_LEAST_DENOMINATOR // common)


class _Table:
    """Cells, the lines of both kinds that they are in, and targets for these."""

    def __init__(self, cells: tuple[_Cell, ...], targets: tuple[dict[str, float], dict[str, float]], parts: int = 0) -> None:
        self.cells, self.stated = cells, targets
        self.lines = tuple(
            list(dict.fromkeys([*given, *(str(cell[kind]) for cell in cells)])) for kind, given in enumerate(targets)
        )
        self.parts = parts or _denominator(targets)
        self.targets = tuple(self._parts(given) for given in targets)
        """Parts of each line with a target."""

    def _parts(self, given: dict[str, float]) -> dict[str, int]:
        shares = [share * self.parts for share in exact_shares(list(given.values()))]
        parts = [floor(share) for share in shares]
        by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - shares[i])
        for i in by_remainder[: self.parts - sum(parts)]:
            parts[i] += 1
        return dict(zip(given, parts, strict=True))

    def met(self) -> str:
        """The targets, rounded to parts."""
        return "; ".join(
            f"{kind} " + ", ".join(f"{line} {100 * part / self.parts:.5g}%" for line, part in of_kind.items())
            for kind, of_kind in zip(("languages", "domains"), self.targets, strict=True)
            if of_kind
        )

    def _flow(self, margins: tuple[dict[str, list[tuple[int, int]]], ...], of_cells: list[list[tuple[int, int]]]) -> list[int]:
        """Units on cells, then languages, then domains, for costs of each."""
        rows, columns = self.lines
        second = 2 + len(rows)
        return cheapest_flow(
            [
                *(
                    Arc(2 + rows.index(cell.language), second + columns.index(cell.domain), steps)
                    for cell, steps in zip(self.cells, of_cells, strict=True)
                ),
                *(Arc(SOURCE, 2 + r, margins[0][row]) for r, row in enumerate(rows)),
                *(Arc(second + c, SINK, margins[1][column]) for c, column in enumerate(columns)),
            ],
            self.parts,
        )

    def _met(self) -> tuple[dict[str, list[tuple[int, int]]], ...]:
        """Margins of exactly the targets; a line without one, where its kind has some, has nothing."""
        free = [[(0, self.parts)], [(0, 0)]]
        return tuple(
            {line: [(0, of_kind[line])] if line in of_kind else free[bool(of_kind)] for line in lines}
            for lines, of_kind in zip(self.lines, self.targets, strict=True)
        )

    def require_feasible(self) -> None:
        some = [[(-1, 1), (0, self.parts)] for _ in self.cells]
        units = self._flow(self._met(), some)[: len(self.cells)]
        if sum(units) < self.parts or not all(units):
            nearest = _Table(self.cells, self.stated, _LEAST_DENOMINATOR).nearest()
            raise Infeasible(self._explain(nearest), nearest)

    def nearest(self) -> tuple[dict[str, int], dict[str, int]]:
        """The feasible margins that are nearest to the targets by the sum of squares, in parts."""

        def squares(target: int | None) -> list[tuple[int, int]]:
            return [(0, self.parts)] if target is None else [(2 * (j - target) + 1, 1) for j in range(self.parts)]

        margins = tuple(
            {line: squares(of_kind.get(line, 0) if of_kind else None) for line in lines}
            for lines, of_kind in zip(self.lines, self.targets, strict=True)
        )
        some = [[(-(self.parts**3), 1), (0, self.parts)] for _ in self.cells]
        units = self._flow(margins, some)[len(self.cells) :]
        rows, columns = self.lines
        return dict(zip(rows, units, strict=False)), dict(zip(columns, units[len(rows) :], strict=True))

    def _explain(self, nearest: tuple[dict[str, int], dict[str, int]]) -> str:
        says = [
            f"{name} " + ", ".join(f"{line} {100 * part / _LEAST_DENOMINATOR:.4g}" for line, part in parts.items())
            for name, of_kind, parts in zip(("languages", "domains"), self.targets, nearest, strict=True)
            if of_kind
        ]
        missing = [
            f"no source counts as {name} {line}"
            for kind, (name, of_kind) in enumerate(zip(("language", "domain"), self.targets, strict=True))
            for line in of_kind
            if line not in {cell[kind] for cell in self.cells}
        ]
        unnamed = [
            f"{name} {line} has sources and no target"
            for name, lines, of_kind in zip(("language", "domain"), self.lines, self.targets, strict=True)
            for line in lines
            if of_kind and line not in of_kind
        ]
        pairs = f"each of the {len(self.cells)} pairs (language, domain) of the sources"
        why = "; ".join(missing + unnamed) or f"not with {100 / _LEAST_DENOMINATOR:.2g}% at least for {pairs}"
        return f"no mix of the sources meets these targets: {why}. The nearest, in percent: {'; '.join(says)}"

    def fitted(self) -> list[float]:
        """Iterative proportional fitting of the weights, in parts."""
        total = sum(cell.weight for cell in self.cells)
        table = [cell.weight / total * self.parts for cell in self.cells]
        kinds = [kind for kind in (0, 1) if self.targets[kind]]
        for _ in range(_ITERATIONS):
            furthest = 0.0
            for kind in kinds:
                sums = dict.fromkeys(self.lines[kind], 0.0)
                for cell, value in zip(self.cells, table, strict=True):
                    sums[str(cell[kind])] += value
                factors = {line: self.targets[kind][line] / sums[line] for line in sums}
                furthest = max(furthest, *(abs(factor - 1) for factor in factors.values()))
                table = [value * factors[str(cell[kind])] for cell, value in zip(self.cells, table, strict=True)]
            if furthest < _TOLERANCE:
                break
        return table

    def rounded(self, table: list[float]) -> list[int]:
        """The nearest whole parts that have the targets as margins, one at least in each cell."""
        steps = []
        for value in table:
            whole = floor(value)
            last = round((1 - 2 * (value - whole)) * _FINE)
            first = min(whole, 1)
            steps.append([(-(self.parts**2) * _FINE, 1), (-_FINE, whole - first), (last, first), (_FINE, self.parts)])
        return self._flow(self._met(), steps)[: len(self.cells)]

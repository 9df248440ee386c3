"""The cheapest whole-number flow through a small network: what rounds tables so that rows, columns and cells all fit.

Successive shortest paths (Ahuja, Magnanti, Orlin, "Network Flows", 1993, section 9.7) by Bellman and Ford; in whole numbers, so
it is the same on every machine. A table whose rows and columns have bounds is a network from its rows to its columns, and such
a network has a whole-number flow wherever it has any: that is why two-way tables can always be rounded with their margins
(Cox, "A constructive procedure for unbiased controlled rounding", JASA 1987).
"""

from collections.abc import Sequence
from typing import NamedTuple

SOURCE, SINK = 0, 1


class Arc(NamedTuple):
    tail: int
    head: int
    steps: Sequence[tuple[int, int]]
    """(cost of a unit, most units at that cost), costs not falling."""


class _Run:
    """How much an arc carries, by the step of its cost that the next unit falls on."""

    def __init__(self, arc: Arc) -> None:
        self.steps = [step for step in arc.steps if step[1]]
        self.at, self.within, self.carries = 0, 0, 0

    def forth(self) -> tuple[int, int] | None:
        """(cost, units) of carrying more."""
        if self.at == len(self.steps):
            return None
        cost, most = self.steps[self.at]
        return cost, most - self.within

    def back(self) -> tuple[int, int] | None:
        """(saving, units) of carrying less."""
        if self.within:
            return self.steps[self.at][0], self.within
        return self.steps[self.at - 1] if self.at else None

    def push(self, units: int) -> None:
        self.carries += units
        if units < 0 and not self.within:
            self.at -= 1
            self.within = self.steps[self.at][1]
        self.within += units
        if self.at < len(self.steps) and self.within == self.steps[self.at][1]:
            self.at, self.within = self.at + 1, 0


def cheapest_flow(arcs: Sequence[Arc], amount: int) -> list[int]:
    """Units on each arc when ``amount``, or as much as there is room for, goes from ``SOURCE`` to ``SINK`` at the least cost.

    The network has no cycle. Of equally cheap flows the choice depends on the order of ``arcs``, and on nothing else.
    """
    nodes = 1 + max(max(arc.tail, arc.head) for arc in arcs)
    runs = [_Run(arc) for arc in arcs]
    while amount:
        path = _shortest_path(nodes, arcs, runs)
        if path is None:
            break
        units = min(amount, *(room for _, _, room in path))
        for a, sign, _ in path:
            runs[a].push(sign * units)
        amount -= units
    return [run.carries for run in runs]


def _shortest_path(nodes: int, arcs: Sequence[Arc], runs: list[_Run]) -> list[tuple[int, int, int]] | None:
    """(arc, 1 or -1 for against it, room) along the cheapest path that is left."""
    distance: list[int | None] = [None] * nodes
    arrived: list[tuple[int, int, int]] = [(0, 0, 0)] * nodes
    distance[SOURCE] = 0
    options = [
        (a, sign, *ends, sign * option[0], option[1])
        for a, (arc, run) in enumerate(zip(arcs, runs, strict=True))
        for sign, ends, option in ((1, (arc.tail, arc.head), run.forth()), (-1, (arc.head, arc.tail), run.back()))
        if option is not None
    ]
    changed = True
    while changed:
        changed = False
        for a, sign, tail, head, cost, room in options:
            here, there = distance[tail], distance[head]
            if here is not None and (there is None or here + cost < there):
                distance[head], arrived[head], changed = here + cost, (a, sign, room), True
    if distance[SINK] is None:
        return None
    path, node = [], SINK
    while node != SOURCE:
        a, sign, room = arrived[node]
        path.append((a, sign, room))
        node = arcs[a].tail if sign > 0 else arcs[a].head
    return path

"""The cheapest flow is the cheapest of all tables that could be tried."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from data.flow import SINK, SOURCE, Arc, cheapest_flow

COST = st.lists(st.integers(-5, 5), min_size=2, max_size=2).map(sorted)
COSTS = st.lists(COST, min_size=8, max_size=8)
# Two rows, two columns: cells, then rows, then columns.
ENDS = [(2, 4), (2, 5), (3, 4), (3, 5), (SOURCE, 2), (SOURCE, 3), (4, SINK), (5, SINK)]


def price(costs: list[list[int]], units: list[int]) -> int:
    return sum(sum(cost[:n]) for cost, n in zip(costs, units, strict=True))


@given(COSTS, st.integers(0, 6))
@settings(deadline=None)
def test_no_table_of_as_many_units_is_cheaper(costs: list[list[int]], amount: int) -> None:
    found = cheapest_flow([Arc(*ends, [(c, 1) for c in cost]) for ends, cost in zip(ENDS, costs, strict=True)], amount)
    tables = [
        [a, b, c, d, a + b, c + d, a + c, b + d]
        for a, b, c, d in product(range(3), repeat=4)
        if max(a + b, c + d, a + c, b + d) <= 2
    ]
    most = min(amount, 4)
    assert sum(found[:4]) == most
    assert found in tables
    assert price(costs, found) == min(price(costs, table) for table in tables if sum(table[:4]) == most)


def test_units_of_one_cost_go_together_as_one_by_one() -> None:
    arcs = [Arc(SOURCE, 2, [(0, 5)]), Arc(SOURCE, 3, [(0, 9)]), Arc(2, SINK, [(-3, 2), (1, 9)]), Arc(3, SINK, [(0, 9)])]
    assert cheapest_flow(arcs, 8) == [2, 6, 2, 6]
    assert cheapest_flow(arcs, 13) == [4, 9, 4, 9]
    assert cheapest_flow(arcs, 99) == [5, 9, 5, 9]

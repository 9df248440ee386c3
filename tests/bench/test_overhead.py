"""The bench's own arithmetic, and a look at its peers, which no bench runs in a test."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

from tests.bench.throughput import block_ratios, rate

STEADY = {step: 100.0 + 0.5 * step for step in range(1, 41)}


def test_the_rate_of_a_window_is_that_of_the_steps_done_inside_it() -> None:
    assert rate(STEADY, (104.9, 111.2), tokens=8) == pytest.approx(8 / 0.5)
    stopped_before = {step: at + 60.0 * (step > 10) for step, at in STEADY.items()}
    assert rate(stopped_before, (165.4, 171.2), tokens=8) == pytest.approx(8 / 0.5)
    stalled = {step: at + 2.0 * (step > 15) for step, at in STEADY.items()}
    assert rate(stalled, (104.9, 112.1), tokens=8) == pytest.approx(8 * 10 / 7.0)


def test_a_window_with_a_step_missing_or_hardly_any_has_no_rate() -> None:
    with pytest.raises(AssertionError, match="missing"):
        rate({step: at for step, at in STEADY.items() if step != 12}, (104.9, 111.2), tokens=8)
    with pytest.raises(AssertionError, match="fewer than two"):
        rate(STEADY, (104.9, 105.1), tokens=8)


def test_a_block_compares_its_two_windows_of_each_side() -> None:
    assert block_ratios([8.0, 10.0, 6.0, 6.0], [10.0, 10.0, 6.0, 4.0]) == [0.9, 1.2]


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "peers").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_peer_imports_is_there(path: Path) -> None:
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    missing = [
        f"{node.module}.{alias.name}"
        for node in imports
        for alias in node.names
        if not hasattr(import_module(node.module or ""), alias.name)
    ]
    assert not missing

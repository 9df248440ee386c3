"""The bench's own arithmetic, and a look at its peers, which no bench runs in a test."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

from tests.bench.overhead import LONG_STEPS, SKIPPED_STEPS, job, rate


def test_the_rate_is_by_the_wall_clock_and_sees_what_lies_between_steps() -> None:
    tokens = job(LONG_STEPS)["training"]["global_batch_size"] * job(LONG_STEPS)["data_pipeline"]["sequence_length"]
    steady = {step: 1000.0 + 0.5 * step for step in range(1, LONG_STEPS + 1)}
    assert rate(steady) == pytest.approx(tokens / 0.5)
    slow_start = {step: at + (step > SKIPPED_STEPS // 2) * 60.0 for step, at in steady.items()}
    assert rate(slow_start) == pytest.approx(tokens / 0.5)
    paused = {step: at + (step > LONG_STEPS // 2) * 25.0 for step, at in steady.items()}
    assert rate(paused) == pytest.approx(tokens / 1.0)


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

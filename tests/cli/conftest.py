"""Views as a service would answer them, with only what a test is about spelled out."""

import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console, RenderableType

from service.spec import JOB_SPEC
from service.views import EventView, JobView, MetricView, PhaseView

T0 = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.fixture
def at() -> Callable[[float], datetime]:
    """Seconds after the start of the story -> the moment."""
    return lambda seconds: T0 + timedelta(seconds=seconds)


@pytest.fixture
def job() -> Callable[..., JobView]:
    def build(**changes: Any) -> JobView:
        spec = JOB_SPEC.validate_python({"name": "quickstart", "parallel_strategy": {"data_parallel": 2}})
        values: dict[str, Any] = {
            "id": "j-8c1f02aa",
            "name": "quickstart",
            "kind": "train",
            "parent": None,
            "trial": None,
            "state": "running",
            "desired": "running",
            "reason": None,
            "why_pending": None,
            "attempt": 1,
            "restarts": 0,
            "progress": [],
            "step": None,
            "total_steps": 80,
            "failure": None,
            "result": None,
            "created_at": T0,
            "started_at": T0 + timedelta(seconds=1),
            "ended_at": None,
            "spec": spec.model_dump(mode="json"),
        }
        return JobView.model_validate(values | changes)

    return build


@pytest.fixture
def phase() -> Callable[..., PhaseView]:
    def build(name: str, done: int = 0, total: int | None = None, **changes: Any) -> PhaseView:
        unit = {"documents": "bytes", "tokenizer": "model", "shards": "documents", "training": "steps"}[name]
        values = {"phase": name, "done": done, "total": total, "unit": unit, "reused": False, "rate": None, "eta_seconds": None}
        return PhaseView.model_validate(values | changes)

    return build


@pytest.fixture
def event(at: Callable[[float], datetime]) -> Callable[..., EventView]:
    def build(
        number: int, kind: str, message: str = "", *, after: float = 0.0, actor: str = "attempt-1", **data: Any
    ) -> EventView:
        return EventView(id=number, at=at(after), type=kind, actor=actor, message=message or kind, data=data)

    return build


@pytest.fixture
def metric(at: Callable[[float], datetime]) -> Callable[..., MetricView]:
    def build(number: int, step: int, generation: int = 1, **values: float) -> MetricView:
        return MetricView(id=number, attempt=1, generation=generation, step=step, at=at(0), values=values)

    return build


@pytest.fixture
def text() -> Callable[[RenderableType], str]:
    """What a page looks like, 120 columns wide, without colours and without blanks at line ends."""

    def render(page: RenderableType) -> str:
        console = Console(file=io.StringIO(), width=120, highlight=False, color_system=None, legacy_windows=False)
        console.print(page)
        assert isinstance(console.file, io.StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    return render

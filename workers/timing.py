"""Where an optimizer step's time goes: one step in many is timed by part, forward and backward together.

The model names its parts by ``mark``: time from there on, on the way forward, counts for that part, and on the way back it
does until the gradient comes by the same place. A step that is not timed pays for one look at a variable, and nothing where
blocks are compiled. A compiled block has no places between its parts any more, so in a timed step blocks run as written:
shares are those of eager blocks, and such a step takes longer. The loss's numbers are the same where nothing is compiled.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, get_args

import torch

Part = Literal["attention", "router", "dispatch", "experts", "loss", "optimizer", "rest"]
"""``attention`` and ``experts`` (dense feed-forward layers are among them) with the norm before them; ``dispatch`` is the way
to the experts and back; ``optimizer`` includes agreeing on the norm, and clipping; ``rest`` is input, embedding, residuals."""

PARTS: tuple[Part, ...] = get_args(Part)
T = TypeVar("T")
_running: "StepTimer | None" = None


class StepTimer(AbstractContextManager["StepTimer"]):
    """Times what runs inside it, one step at a time in a process. On a GPU by events, so that the step waits only at its end.

    ``compiled``: leave blocks compiled. They are then compiled anew, in pieces between the parts: for benchmarks.
    """

    def __init__(self, device: torch.device, *, compiled: bool = False, clock: Callable[[], float] = time.perf_counter) -> None:
        self.compiled = compiled
        self.part: Part = "rest"
        self._device, self._clock = device, clock
        self._ticks: list[tuple[Part, Any]] = []

    def __enter__(self) -> Self:
        global _running
        assert _running is None, "a step is being timed already"
        _running = self
        self._ticks.clear()
        self.enter("rest")
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        global _running
        self.enter("rest")
        _running = None

    def enter(self, part: Part) -> None:
        """From now on time counts for ``part``."""
        self.part = part
        self._ticks.append((part, self._now()))

    def seconds(self) -> dict[Part, float]:
        """By part, of the step that ended last. They add up to the whole step."""
        totals = dict.fromkeys(PARTS, 0.0)
        for (part, start), (_, end) in zip(self._ticks, self._ticks[1:], strict=False):
            totals[part] += self._between(start, end)
        return totals

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        if self._device.type != "cuda":
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


class Waiting(Iterator[T], Generic[T]):
    """Passes items on. ``seconds``: how long the last one was waited for."""

    def __init__(self, items: Iterator[T], clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = 0.0
        self._items, self._clock = items, clock

    def __next__(self) -> T:
        before = self._clock()
        item = next(self._items)
        self.seconds = self._clock() - before
        return item


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, part: Part) -> torch.Tensor:
        assert _running is not None
        ctx.before = _running.part
        _running.enter(part)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        if _running is not None:
            _running.enter(ctx.before)
        return gradient, None


def mark(x: torch.Tensor, part: Part) -> torch.Tensor:
    """``x`` as it is. What is computed from it, and that one's gradient, belongs to ``part`` up to the next mark."""
    return x if _running is None else _marked(x, part)


@torch.compiler.disable
def _marked(x: torch.Tensor, part: Part) -> torch.Tensor:
    return _Mark.apply(x, part)


def enter(part: Part) -> None:
    """Outside the graph: from now on time counts for ``part``."""
    if _running is not None:
        _running.enter(part)


def blocks_apart() -> AbstractContextManager[object]:
    """In a timed step, what is compiled runs as written inside; in others nothing changes."""
    if _running is None or _running.compiled:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")

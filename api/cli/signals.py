"""Signals as one event: whatever the user presses, and however often, what was started is stopped once and in order."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A stop signal arrived. Not an ``Exception``: nothing between here and the clean-up may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_status(self) -> int:
        return 128 + self.number


class StopSignals:
    """While entered, the first stop signal raises ``Stopped`` in the main thread, once; any further one is only noted.

    Inside ``held()`` a signal waits for the end of the block, so that a process is never started but unknown. After
    ``settle()`` nothing raises any more: call it before the clean-up.
    """

    def __init__(self) -> None:
        self.arrived: int | None = None
        self._raised = False
        self._held = 0
        self._settled = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.arrived is None:
            self.arrived = number
        if not self._held:
            self._raise()

    def _raise(self) -> None:
        if self.arrived is not None and not self._raised and not self._settled:
            self._raised = True
            raise Stopped(self.arrived)

    @contextmanager
    def held(self) -> Iterator[None]:
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._raise()

    def settle(self) -> None:
        self._settled = True

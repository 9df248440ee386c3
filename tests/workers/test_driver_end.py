"""How an attempt ends, whatever a signal is turned into on its way up. No cluster is running here."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workers import driver
from workers.attempt import Order
from workers.preparation import Stopped
from workers.reporter import NullReporter


class Listener(NullReporter):
    def __init__(self, *_: Any) -> None:
        self.outcomes: list[str] = []

    def adopt(self) -> None:
        pass

    def ended(self, outcome: str) -> None:
        self.outcomes.append(outcome)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        (Stopped("paused"), "paused"),
        (Stopped("cancelled"), "cancelled"),
        (KeyboardInterrupt(), "cancelled"),
        (SystemExit(1), "cancelled"),
    ],
    ids=repr,
)
def test_a_signal_ends_the_attempt_on_purpose(
    raised: BaseException, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()

    def run(*_: Any) -> str:
        raise raised

    monkeypatch.setattr(driver, "_join_cluster", lambda _: None)
    monkeypatch.setattr(driver, "Reporter", lambda *_: listener)
    order = Order(
        job_id="j1",
        job_name="test",
        kind="train",
        attempt=1,
        token="t",
        service_url="http://service",
        spec={},
        job_dir=tmp_path,
        prepared_dir=tmp_path,
    )
    assert driver._attempt(order, run) == 0
    assert listener.outcomes == [outcome]

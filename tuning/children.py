"""Trials that are jobs of their own: submitted, watched and cancelled over REST with the token of the study's attempt.

A job cannot wait at a measurement for what the study says to it. It trains on, and one that is to stop hears of it a poll or
two later; what it measured meanwhile is held back until the measurement before is answered, and is dropped when that ends it.
So what is decided, and from what, is as if it had waited.

With its attempt a study loses sight of its trials and no more: they go on, and the next driver finds each by its number. That
trials pause, end and go on with their study is the service's doing.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydantic import ValidationError

from tuning.measurements import Measurements
from tuning.trials import Assignment, Ended, Measured, News
from tuning.views import ChildView
from workers.attempt import Order
from workers.spec import TrainSpec

logger = logging.getLogger(__name__)

FOR_GOOD = frozenset({404, 413, 422})
"""Answers that would be the same the next time."""
HELD = frozenset({"pausing", "paused", "cancelling", "cancelled"})
OVER = frozenset({"succeeded", "failed", "cancelled"})


class NotNow(Exception):
    """The service is away, or refuses for the moment (an attempt that is over, a study that is to pause): ask again."""


class Refused(Exception):
    """It would refuse again."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


class ChildrenApi:
    """``/api/v1/jobs/{job_id}/attempts/{attempt}/children``. Everything may be asked again. Raises ``NotNow``, ``Refused``."""

    def __init__(self, order: Order) -> None:
        self._url = f"{order.service_url}/api/v1/jobs/{order.job_id}/attempts/{order.attempt}/children"
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {order.token}"},
            timeout=httpx.Timeout(10.0, connect=2.0),
            trust_env=False,  # proxies are for the internet
        )

    def begin(self, trial: int, job: Mapping[str, Any]) -> ChildView:
        return self._view("PUT", f"/{trial}", json=job)

    def look(self, trial: int, after: int) -> ChildView:
        return self._view("GET", f"/{trial}", params={"after": after})

    def cancel(self, trial: int) -> None:
        self._ask("POST", f"/{trial}:cancel")

    def keep(self, trials: Collection[int]) -> None:
        self._ask("POST", ":keep", json={"trials": sorted(trials)})

    def close(self) -> None:
        self._http.close()

    def _view(self, method: str, path: str, **options: Any) -> ChildView:
        try:
            return ChildView.model_validate_json(self._ask(method, path, **options))
        except ValidationError as error:
            raise NotNow("another program answers at the service's address") from error

    def _ask(self, method: str, path: str, **options: Any) -> bytes:
        try:
            answer = self._http.request(method, self._url + path, **options)
        except httpx.TransportError as error:
            raise NotNow(f"the service is away: {error}") from error
        if answer.is_success:
            return answer.content
        if answer.status_code not in FOR_GOOD:
            raise NotNow(answer.text)
        try:
            problem = answer.json()
            raise Refused(problem["code"], problem["detail"])
        except (ValueError, KeyError, TypeError) as error:
            raise NotNow("another program answers at the service's address") from error


@dataclass
class _Child:
    """A trial that was begun and whose end the study has not heard."""

    number: int
    job: Mapping[str, Any]
    spec: TrainSpec
    queued: bool = False
    """The service was seen to run it, or to have it queued."""
    newest: int = 0
    """Id of the newest figures that were seen."""
    heard: Measurements = field(default_factory=Measurements)
    measured: set[int] = field(default_factory=set)
    """Steps; what a job that was restarted measures again is known."""
    to_tell: deque[News] = field(default_factory=deque)
    asks: bool = False
    """A measurement was told and not answered."""
    stopping: bool = False
    over: bool = False
    """Its end is among what is to be told."""


class ChildTrials:
    """
    Args:
        slots: so many trials are jobs at once.
        running: trials that were begun and have not ended; jobs of all others are cancelled.
        pause: waits for seconds.
    """

    def __init__(
        self, api: ChildrenApi, slots: int, running: Collection[int], pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._api, self._slots, self._running, self._pause = api, slots, running, pause
        self._kept = False
        self._children: dict[int, _Child] = {}

    @property
    def free(self) -> int:
        return self._slots - len(self._children)

    def begin(self, assignment: Assignment) -> None:
        spec = TrainSpec.model_validate(assignment.job)
        self._children[assignment.number] = _Child(assignment.number, assignment.job, spec)

    def answer(self, number: int, go_on: bool) -> None:
        child = self._children[number]
        child.asks = False
        if not go_on:
            child.stopping, child.over = True, False
            child.to_tell.clear()

    def news(self, timeout: float) -> Sequence[News]:
        told = self._told()
        if not told:
            try:
                self._poll()
            except NotNow as error:
                logger.debug("the jobs of trials are asked for again: %s", error)
            told = self._told()
        if not told:
            self._pause(timeout)
        return told

    def close(self) -> None:
        self._api.close()

    def _told(self) -> list[News]:
        """The next news of each trial whose last measurement was answered."""
        told = [child.to_tell.popleft() for child in self._children.values() if child.to_tell and not child.asks]
        for news in told:
            if isinstance(news, Measured):
                self._children[news.number].asks = True
            else:
                del self._children[news.number]
        return told

    def _poll(self) -> None:
        if not self._kept:
            self._api.keep(self._running)
            self._kept = True
        for child in self._children.values():
            if child.over:
                continue
            try:
                self._look(child)
            except Refused as error:
                self._ends(child, Ended(child.number, "failed", code=error.code, reason=error.detail))

    def _look(self, child: _Child) -> None:
        if child.stopping:
            with suppress(Refused):  # there is nothing to stop
                self._api.cancel(child.number)
            self._ends(child, Ended(child.number, "stopped"))
            return
        if not child.queued:
            view = self._api.begin(child.number, child.job)
            child.queued = not (view.state in HELD and view.reason == "study")
            return
        view = self._api.look(child.number, child.newest)
        for figures in view.figures:
            self._hear(child, figures.step, figures.values)
            child.newest = figures.id
        if not view.figures and view.state in OVER and (end := _end(child, view)) is not None:
            self._ends(child, end)

    def _hear(self, child: _Child, step: int, values: Mapping[str, float]) -> None:
        child.heard.hear(values)
        if "eval_loss" in values and step < child.spec.total_steps and step not in child.measured:
            child.measured.add(step)
            child.to_tell.append(Measured(child.number, step, dict(child.heard.metrics)))

    def _ends(self, child: _Child, end: Ended) -> None:
        child.to_tell.append(end)
        child.over = True


def _end(child: _Child, view: ChildView) -> Ended | None:
    """None: the study itself is cancelled, and its trials with it; they go on if it does."""
    if view.state == "succeeded":
        return Ended(child.number, "succeeded", child.heard.at_the_end(view.result or {}, child.spec))
    if view.state == "failed":
        failure = view.failure or {}
        return Ended(child.number, "failed", code=str(failure.get("code", "")), reason=str(failure.get("detail", "")))
    if view.reason == "study":
        return None
    return Ended(child.number, "failed", code="cancelled", reason=f"its job {view.job_id} was cancelled")

"""What the routes work with: opened once when the application starts, closed when it ends."""

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from api.cluster import LocalCluster
from api.keeper import ClusterKeeper
from api.launcher import Endpoint, RayLauncher
from api.settings import Settings
from api.stream import Changes
from service.children import Children
from service.history import History
from service.jobs import Jobs
from service.launcher import Launcher, LauncherUnavailable
from service.reports import Reports
from service.store import JobNotFound, Store
from service.studies import Studies
from service.supervisor import Supervisor, SupervisorSettings

STOP_SECONDS = 2.0
"""How long the end of the service waits for the supervisor's step. It may wait for a cluster that hangs, and loses nothing."""

CLUSTER_CHECK_SECONDS = 1.0


@dataclass
class Metrics:
    """Prometheus figures of one application; a registry of its own, so that two in one process do not meet."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.reports = Counter("manta_reports", "Reports of attempts that were received", ["kind"], registry=self.registry)
        self.reports_refused = Counter(
            "manta_report_batches_refused", "Batches of reports that were refused", ["code"], registry=self.registry
        )


class Supervision(Supervisor):
    """The supervisor with a thread, and the time of its last look."""

    def __init__(self, store: Store, launcher: Launcher, settings: SupervisorSettings) -> None:
        super().__init__(store, launcher, settings)
        self._ticked_at = time.monotonic()
        self._thread = threading.Thread(target=self.run, name="supervisor", daemon=True)

    def tick(self) -> int:
        looked_at = super().tick()
        self._ticked_at = time.monotonic()
        return looked_at

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        super().stop()
        self._thread.join(STOP_SECONDS)

    def alive(self) -> bool:
        return self._thread.is_alive()

    def age(self) -> float:
        """Seconds since the last look at all due jobs was done."""
        return time.monotonic() - self._ticked_at


class ClusterCheck:
    """Whether the cluster takes jobs, asked of it at most once in ``CLUSTER_CHECK_SECONDS``: anybody may ask for readiness."""

    def __init__(self, launcher: Launcher, keeper: ClusterKeeper | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._launcher = launcher
        self._keeper = keeper
        self._clock = clock
        self._lock = threading.Lock()
        self._last: tuple[float, str] | None = None

    def __call__(self) -> str:
        """``ok``, or what is wrong."""
        with self._lock:
            if self._last is None or self._clock() - self._last[0] >= CLUSTER_CHECK_SECONDS:
                self._last = self._clock(), self._look()
            return self._last[1]

    def _look(self) -> str:
        try:
            self._launcher.capacity()
        except LauncherUnavailable as error:
            failure = self._keeper.failure if self._keeper is not None else None
            return failure or error.detail
        return "ok"


@dataclass(frozen=True)
class Services:
    settings: Settings
    store: Store
    jobs: Jobs
    history: History
    studies: Studies
    children: Children
    reports: Reports
    launcher: Launcher
    supervision: Supervision
    cluster_check: ClusterCheck
    changes: Changes
    metrics: Metrics


def opened(settings: Settings, metrics: Metrics, service_url: str, launcher: Launcher | None, stack: ExitStack) -> Services:
    """Store, launcher and supervisor, running; ``stack`` closes them in reverse. To be called on the event loop's thread.

    ``launcher`` None: the cluster at ``ray_address``, or a local one that is kept up.
    """
    settings.make_home()
    store = Store.open(settings.store_url)
    stack.callback(store.close)
    changes = Changes(asyncio.get_running_loop())
    stack.callback(store.subscribe(changes.notify))
    keeper = None
    if launcher is None:
        launcher, keeper = _ray(settings, stack)
    supervision = Supervision(
        store,
        launcher,
        SupervisorSettings(
            owner=f"{socket.gethostname()}:{settings.home}",
            service_url=service_url,
            home=settings.home,
            idle_seconds=settings.tick_seconds,
        ),
    )
    supervision.start()
    stack.callback(supervision.stop)
    stack.callback(changes.close)
    jobs = Jobs(store, settings.home, max_unfinished=settings.max_unfinished_jobs)
    metrics.registry.register(StateCollector(jobs, supervision, changes))
    check = ClusterCheck(launcher, keeper)
    return Services(
        settings=settings,
        store=store,
        jobs=jobs,
        history=History(store),
        studies=Studies(store),
        children=Children(store),
        reports=Reports(store),
        launcher=launcher,
        supervision=supervision,
        cluster_check=check,
        changes=changes,
        metrics=metrics,
    )


def _ray(settings: Settings, stack: ExitStack) -> tuple[Launcher, ClusterKeeper | None]:
    if settings.ray_address is not None:
        token = settings.ray_token.get_secret_value() if settings.ray_token else None
        there = Endpoint(settings.ray_address, token)
        launcher, keeper = RayLauncher(lambda: there), None
    else:
        keeper = ClusterKeeper(LocalCluster(settings))
        launcher = RayLauncher(keeper.endpoint)
        keeper.start()
        stack.callback(keeper.stop)
    stack.callback(launcher.close)
    return launcher, keeper


class StateCollector(Collector):
    """What is asked of the store only when Prometheus asks."""

    def __init__(self, jobs: Jobs, supervision: Supervision, changes: Changes) -> None:
        self._jobs = jobs
        self._supervision = supervision
        self._changes = changes

    def describe(self) -> Iterable[Metric]:
        return ()  # or registering would collect, and so ask the store

    def collect(self) -> Iterable[Metric]:
        states = GaugeMetricFamily("manta_jobs", "Jobs by state", labels=["state"])
        for state, count in self._jobs.count_by_state().items():
            states.add_metric([state], count)
        yield states
        yield GaugeMetricFamily("manta_supervisor_age_seconds", "Since the last look at all due jobs", self._supervision.age())
        yield GaugeMetricFamily("manta_supervisor_up", "Whether the supervisor runs", float(self._supervision.alive()))
        yield GaugeMetricFamily("manta_streams", "Live streams that are open", self._changes.watchers)


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


Use = Annotated[Services, Depends(services)]
_ID = re.compile(r"[a-z0-9]{1,32}")


def known_id(job_id: str) -> str:
    """The path's job id, if it can be one. Raises ``JobNotFound``."""
    if not _ID.fullmatch(job_id):
        raise JobNotFound(f"there is no job {job_id}")
    return job_id


JobId = Annotated[str, Depends(known_id)]


def existing(job_id: JobId, use: Use) -> str:
    """The path's job id, of a job that exists: a stream has answered 200 before it could find out. Raises ``JobNotFound``."""
    return use.jobs.get(job_id).id


ExistingId = Annotated[str, Depends(existing)]

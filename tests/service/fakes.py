"""A clock, a cluster and a driver that tests move by hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.history import History
from service.jobs import Jobs
from service.launcher import Capacity, LauncherUnavailable, LaunchState, LaunchStatus
from service.orders import order_path
from service.reports import Reports
from service.spec import TrainJob
from service.store import Store
from service.supervisor import Supervisor, SupervisorSettings
from service.views import JobView
from workers.attempt import Desired, Order, Report, ReportBatch, ReportKind
from workers.spec import GpuConfig, TrainingSpec


class Clock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FakeLauncher:
    """A cluster of ``cpus``. ``begun`` has every submission that started a process, in order."""

    def __init__(self, cpus: float = 4) -> None:
        self.size = Capacity(cpus, 0)
        self.away = False
        self.obeys = True
        """A stop ends the submission at once."""
        self.states: dict[str, LaunchState] = {}
        self.begun: list[str] = []
        self.entrypoints: dict[str, str] = {}
        self.stops: list[str] = []
        self.lookups = 0
        self.printed = ""
        self.message = ""

    def _answer(self) -> None:
        if self.away:
            raise LauncherUnavailable("connection refused")

    def submit(self, submission_id: str, entrypoint: str, env: Mapping[str, str]) -> None:
        self._answer()
        if submission_id not in self.states:
            self.states[submission_id] = "running"
            self.begun.append(submission_id)
            self.entrypoints[submission_id] = entrypoint

    def status(self, submission_id: str) -> LaunchStatus:
        self.lookups += 1
        self._answer()
        state = self.states.get(submission_id, "unknown")
        return LaunchStatus(state, self.message if state == "failed" else "")

    def stop(self, submission_id: str) -> None:
        self._answer()
        self.stops.append(submission_id)
        if self.obeys and self.states.get(submission_id) in ("pending", "running"):
            self.states[submission_id] = "stopped"

    def logs(self, submission_id: str) -> str:
        self._answer()
        return self.printed

    def capacity(self) -> Capacity:
        self._answer()
        return self.size

    def forget(self) -> None:
        """The cluster was lost and another stands in its place."""
        self.states.clear()

    @property
    def running(self) -> list[str]:
        return [name for name, state in self.states.items() if state in ("pending", "running")]


class Driver:
    """What an attempt says, with the token out of its order file."""

    def __init__(self, manta: "Manta", job_id: str, attempt: int) -> None:
        self.manta = manta
        self.order = Order.model_validate_json(order_path(manta.jobs.directory(job_id), attempt).read_text())
        self.sequence = 0

    def report(self, kind: ReportKind, *, generation: int = 0, rank: int = 0, **data: Any) -> Report:
        self.sequence += 1
        return Report(generation=generation, rank=rank, sequence=self.sequence, kind=kind, time=self.manta.clock.now, data=data)

    def send(self, *reports: Report) -> Desired:
        batch = ReportBatch(reports=list(reports))
        return self.manta.reports.ingest(self.order.job_id, self.order.attempt, self.order.token, batch).desired

    def trains(self, step: int, *, generation: int = 0) -> Desired:
        return self.send(
            self.report("phase", generation=generation, phase="training", done=step, total=100, unit="steps"),
            self.report("metrics", generation=generation, step=step, values={"loss": 1.0 / step}),
        )

    def ends(self, outcome: str, launch: LaunchState = "succeeded") -> None:
        """The last word, and the end of the processes."""
        self.send(self.report("ended", rank=-1, outcome=outcome))
        self.manta.launcher.states[f"manta-{self.order.job_id}-{self.order.attempt}"] = launch


class Manta:
    """A service without its edge, on a clock that only ``pass_time`` moves."""

    def __init__(self, store: Store, home: Path, *, cpus: float = 4) -> None:
        self.store = store
        self.home = home
        self.clock = Clock()
        self.launcher = FakeLauncher(cpus)
        self.jobs = Jobs(store, home, clock=self.clock)
        self.history = History(store)
        self.reports = Reports(store, clock=self.clock)
        self.supervisor = self.another_supervisor("here")

    def another_supervisor(self, owner: str, **settings: Any) -> Supervisor:
        chosen = SupervisorSettings(owner=owner, service_url="http://127.0.0.1:1", home=self.home, **settings)
        return Supervisor(self.store, self.launcher, chosen, clock=self.clock)

    def submit(self, name: str = "job", workers: int = 2, **spec: Any) -> str:
        spec.setdefault("training", TrainingSpec(global_batch_size=64, micro_batch_size=1))  # enough for 64 workers
        job = TrainJob(name=name, gpu_config=GpuConfig(nodes=workers), **spec)
        return self.jobs.create(job).job.id

    def pass_time(self, seconds: float, supervisor: Supervisor | None = None) -> None:
        """Let the clock run to the end of ``seconds``, with a tick whenever a job is due."""
        chosen = supervisor or self.supervisor
        until = self.clock.now + seconds
        while True:
            chosen.tick()
            if self.clock.now >= until:
                return
            due = self.store.next_look()
            self.clock.now = min(max(until if due is None else due, self.clock.now + 0.1), until)

    def job(self, job_id: str) -> JobView:
        return self.jobs.get(job_id)

    def driver(self, job_id: str) -> Driver:
        return Driver(self, job_id, self.job(job_id).attempt)

    def started(self, name: str = "job", **spec: Any) -> tuple[str, Driver]:
        """A job whose first attempt was submitted."""
        job_id = self.submit(name, **spec)
        self.supervisor.tick()
        return job_id, self.driver(job_id)

    def event_types(self, job_id: str) -> list[str]:
        return [event.type for event in self.history.events(job_id).items]

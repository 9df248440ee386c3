"""Views as pages of the terminal: the list of jobs, the job page, its events, checkpoints and attempts. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from api.cli.text import clock, count, day, duration, percent_below, size
from service.states import FINAL
from service.views import AttemptView, CheckpointView, EventView, JobView, PhaseView, WorkerView

STATE_STYLE = {
    "queued": "yellow",
    "preparing": "cyan",
    "running": "cyan",
    "pausing": "magenta",
    "paused": "magenta",
    "cancelling": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
}
PHASE_TITLE = {
    "documents": "Documents",
    "tokenizer": "Tokenizer",
    "shards": "Packed shards",
    "training": "Training",
    "trials": "Trials",
}
NODE_CHARACTERS = 16
"""Of a node's id that are shown."""


def state_text(job: JobView) -> Text:
    return Text(job.state.value, style=STATE_STYLE[job.state.value])


def took(job: JobView, now: datetime) -> str:
    """How long the job has been going on (``-`` before its start)."""
    if job.started_at is None:
        return "-"
    return duration(((job.ended_at or now) - job.started_at).total_seconds())


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for column in columns:
        right = column.endswith(">")
        table.add_column(column.rstrip(">"), justify="right" if right else "left", no_wrap=column not in ("what", "why"))
    return table


def job_list(jobs: Sequence[JobView], now: datetime) -> RenderableType:
    """One line a job, newest first as the API gives them."""
    if not jobs:
        return Text("No jobs. `manta submit FILE` starts one.", style="dim")
    table = _table("job", "name", "kind", "state", "step>", "took>", "restarts>", "created", "why")
    for job in jobs:
        steps = f"{job.step or 0}/{job.total_steps}" if job.total_steps else "-"
        why = job.why_pending or (job.failure or {}).get("detail") or ""
        table.add_row(
            job.id,
            job.name,
            job.kind,
            state_text(job),
            steps,
            took(job, now),
            str(job.restarts),
            day(job.created_at),
            escape(why),
        )
    return table


def phase_row(phase: PhaseView) -> tuple[RenderableType, ...]:
    """Title, bar, done of total, rate and time left of one phase."""
    finished = phase.reused or (phase.total is not None and phase.done >= phase.total)
    total = phase.total if phase.total is not None else (phase.done or 1) if finished else None
    done = total if phase.reused and total is not None else phase.done
    bar = ProgressBar(total=max(total, 1) if total is not None else None, completed=done, width=28, pulse=total is None)
    if phase.reused:
        return PHASE_TITLE.get(phase.phase, phase.phase), bar, "[green]reused[/]", "", ""
    speed = "" if finished else speed_of(phase)
    left = "[green]done[/]" if finished else f"{duration(phase.eta_seconds)} left" if phase.eta_seconds is not None else ""
    return PHASE_TITLE.get(phase.phase, phase.phase), bar, done_of(phase), speed, left


def done_of(phase: PhaseView) -> str:
    """``120/400 documents``, ``1.7 MiB/8.5 MiB``; without a total only what is done."""
    write = size if phase.unit == "bytes" else count
    of = write(phase.done) if phase.total is None else f"{write(phase.done)}/{write(phase.total)}"
    return of if phase.unit == "bytes" else f"{of} {phase.unit}"


def speed_of(phase: PhaseView) -> str:
    """``2.4 steps/s``, ``310 KiB/s``; empty while it is not known, or where there is only one of it."""
    if not phase.rate or phase.total == 1:
        return ""
    return f"{size(phase.rate)}/s" if phase.unit == "bytes" else f"{count(phase.rate)} {phase.unit}/s"


def phases_table(progress: Sequence[PhaseView]) -> Table:
    """A bar for each phase that has begun."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(min_width=13)
    grid.add_column()
    for _ in range(3):
        grid.add_column(justify="right", no_wrap=True)
    for phase in progress:
        grid.add_row(*phase_row(phase))
    return grid


@dataclass(frozen=True)
class Restart:
    """One death and what it cost, from the events ``worker_died`` and ``training_resumed``."""

    at: datetime
    who: str
    step: int | None
    resumed_at: datetime | None
    resumed_step: int | None
    cost_seconds: float | None
    lost_steps: int | None


def restarts(events: Sequence[EventView]) -> list[Restart]:
    """Pair every death with the first resumption after it. Deaths at one moment share theirs.

    The cost is what the run reports; where it does not, the time between the two events.
    """
    found: list[Restart] = []
    for position, event in enumerate(events):
        if event.type != "worker_died":
            continue
        resumed = next((later for later in events[position + 1 :] if later.type == "training_resumed"), None)
        data: dict[str, Any] = {**event.data, **(resumed.data if resumed else {})}
        cost = data.get("cost_seconds")
        if cost is None and resumed is not None:
            cost = (resumed.at - event.at).total_seconds()
        died = event.data
        who = f"rank {died['rank']}" if died.get("rank") is not None else "a worker"
        if died.get("pid") is not None:
            who += f", pid {died['pid']}"
        if died.get("host"):
            who += f" on {died['host']}"
        found.append(
            Restart(
                at=event.at,
                who=who,
                step=died.get("step"),
                resumed_at=resumed.at if resumed else None,
                resumed_step=resumed.data.get("step") if resumed else None,
                cost_seconds=cost,
                lost_steps=data.get("lost_steps"),
            )
        )
    return found


def restart_line(restart: Restart) -> str:
    """``rank 1, pid 4242 on n1 died after step 37; training again at step 21 after 9.1 s, 17 steps done again``."""
    line = f"{restart.who} died" + (f" after step {restart.step}" if restart.step is not None else "")
    if restart.resumed_at is None:
        return line + "; no step since"
    line += "; training again" + (f" at step {restart.resumed_step}" if restart.resumed_step is not None else "")
    if restart.cost_seconds is not None:
        line += f" after {duration(restart.cost_seconds)}"
    if restart.lost_steps is not None:
        line += f", {restart.lost_steps} step{'' if restart.lost_steps == 1 else 's'} done again"
    return line


def events_table(events: Sequence[EventView]) -> RenderableType:
    if not events:
        return Text("No events.", style="dim")
    table = _table("at", "who", "event", "what")
    for event in events:
        table.add_row(day(event.at), event.actor, event.type, escape(event.message))
    return table


def checkpoints_table(checkpoints: Sequence[CheckpointView]) -> RenderableType:
    if not checkpoints:
        return Text("No checkpoints yet.", style="dim")
    table = _table("step>", "attempt>", "size>", "state", "written", "path")
    for item in checkpoints:
        style = "dim" if item.state == "deleted" else ""
        written = clock(item.created_at)
        table.add_row(str(item.step), str(item.attempt), size(item.bytes), item.state, written, escape(item.path), style=style)
    return table


def attempts_table(attempts: Sequence[AttemptView]) -> Table:
    table = _table("attempt>", "state", "outcome", "generation>", "started", "ended", "what")
    for item in attempts:
        cells = (
            item.outcome or "",
            str(item.generation),
            clock(item.created_at),
            clock(item.ended_at),
            escape(item.detail or ""),
        )
        table.add_row(str(item.number), item.state, *cells)
    return table


def workers_table(workers: Sequence[WorkerView]) -> Table:
    table = _table("attempt>", "generation>", "rank>", "state", "pid>", "node", "step>", "heard of")
    for item in workers:
        style = "red" if item.state == "died" else "dim" if item.state == "ended" else ""
        rank = "driver" if item.rank < 0 else str(item.rank)
        step = "" if item.step is None else str(item.step)
        heard = clock(item.heartbeat_at)
        cells = (rank, item.state, str(item.pid), escape(item.node[:NODE_CHARACTERS]), step, heard)
        table.add_row(str(item.attempt), str(item.generation), *cells, style=style)
    return table


def failure_text(failure: dict[str, Any]) -> RenderableType:
    """What went wrong, where, and the last lines of that worker's log."""
    rank, node, step = (failure.get(key) for key in ("rank", "node", "step"))
    where = [] if rank is None else ["driver" if rank < 0 else f"rank {rank}"]
    where += [] if node is None else [f"node {str(node)[:NODE_CHARACTERS]}"]
    where += [] if step is None else [f"step {step}"]
    place = f" [dim]({', '.join(where)})[/]" if where else ""
    head = f"[bold red]{escape(str(failure.get('code', 'failed')))}[/] {escape(str(failure.get('detail', '')))}{place}"
    lines: list[RenderableType] = [Text.from_markup(head)]
    if failure.get("pointer"):
        lines.append(Text.from_markup(f"  [cyan]{escape(str(failure['pointer']))}[/]"))
    tail = failure.get("log_tail")
    text = "\n".join(map(str, tail)) if isinstance(tail, list) else str(tail or "")
    lines.extend(Text(f"  | {line}", style="dim") for line in text.splitlines()[-20:])
    return Group(*lines)


def data_table(result: dict[str, Any]) -> RenderableType:
    """Where a prepared data set lies, and how much it is (``workers.attempt.DataSummary``)."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row("path", Text(str(result["path"]), overflow="fold"))
    for name in ("documents", "rows", "tokens"):
        grid.add_row(name, count(result[name]))
    return grid


def result_table(result: dict[str, Any]) -> RenderableType:
    """The figures that a finished training run ends with (``workers.attempt.Summary``)."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(justify="right")
    grid.add_column(style="dim")
    held_out = result.get("eval_loss")
    if result.get("train_loss") is not None:
        grid.add_row("train loss", f"{result['train_loss']:.4f}", "nats a token")
    if held_out is not None:
        grid.add_row("held-out loss", f"[bold]{held_out:.4f}[/]", "")
        peers = (("unigram", "unigram_loss"), ("bigram", "bigram_loss"), ("one token of context", "one_token_context_loss"))
        for title, key in peers:
            if result.get(key) is not None:
                grid.add_row(title, f"{result[key]:.4f}", f"held-out is {percent_below(held_out, result[key])}")
    if result.get("tokens_per_second") is not None:
        mfu = f"MFU {result['mfu']:.1%}" if result.get("mfu") is not None else ""
        grid.add_row("tokens/s", count(round(result["tokens_per_second"])), mfu)
    if parts := result.get("step_parts"):
        grid.add_row("a step", duration(sum(parts.values())), step_parts(parts))
    if result.get("steps") is not None:
        grid.add_row("steps", count(result["steps"]), f"{count(result.get('tokens', 0))} tokens")
    return grid


def step_parts(seconds: dict[str, float]) -> str:
    """``attention 31%, experts 40%, ...``: shares of a step, the largest first."""
    whole = sum(seconds.values()) or 1.0
    ranked = sorted(seconds.items(), key=lambda part: -part[1])
    return ", ".join(f"{name.replace('_', ' ')} {value / whole:.1%}" for name, value in ranked)


def samples(result: dict[str, Any], most: int = 3) -> RenderableType:
    """The first generated texts, blanks folded."""
    grid = Table.grid(padding=(0, 1))
    for sample in result.get("samples", [])[:most]:
        grid.add_row(Text("»", "dim"), Text(" ".join(str(sample).split())))
    return grid


def _section(title: str, body: RenderableType) -> list[RenderableType]:
    return [Text(), Text(title, style="bold"), body]


def job_page(
    job: JobView,
    *,
    attempts: Sequence[AttemptView],
    workers: Sequence[WorkerView],
    events: Sequence[EventView],
    checkpoints: Sequence[CheckpointView],
    now: datetime,
) -> RenderableType:
    """Everything about one job: states, progress, deaths and their cost, attempts, workers, checkpoints, result."""
    head = Text.assemble((job.name, "bold"), "  ", (job.id, "dim"), "  ", job.kind, "  ", state_text(job))
    if job.reason:
        head.append(f" ({job.reason})", style="dim")
    parts: list[RenderableType] = [head]
    times = (
        f"created {day(job.created_at)}  started {clock(job.started_at)}  ended {clock(job.ended_at)}  took {took(job, now)}"
    )
    parts.append(Text(times, style="dim"))
    if job.why_pending:
        parts.append(Text(f"waits: {job.why_pending}", style="yellow"))
    if job.failure:
        parts += _section("Failure", failure_text(job.failure))
    timeline = [event for event in events if event.type not in ("worker_died", "training_resumed")]
    if timeline:
        parts += _section("Timeline", events_table(timeline))
    if job.progress:
        parts += _section("Progress", phases_table(job.progress))
    deaths = restarts(events)
    if deaths:
        lines = [Text(f"{clock(death.at)}  {restart_line(death)}") for death in deaths]
        parts += _section(f"Restarts ({job.restarts})", Group(*lines))
    if attempts:
        parts += _section("Attempts", attempts_table(attempts))
    if workers:
        parts += _section("Workers", workers_table(workers))
    if checkpoints:
        parts += _section("Checkpoints", checkpoints_table(checkpoints))
    if job.result and job.kind == "tune":
        parts += _section("Result", Text(f"`manta tune show {job.name}` shows what was found.", "dim"))
    elif job.result and job.kind == "data":
        parts += _section("Data set", data_table(job.result))
    elif job.result:
        parts += _section("Result", result_table(job.result))
        if job.result.get("samples"):
            parts += _section("Samples", samples(job.result))
    if job.state not in FINAL:
        parts += [Text(), Text(f"manta watch {job.name}   manta logs {job.name} --follow", style="dim")]
    return Group(*parts)

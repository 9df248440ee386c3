"""A study on the terminal: what is best so far, what matters, what it cost. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from api.cli.pages import state_text
from api.cli.text import count, duration
from service.studies import StudyView
from service.views import JobView
from tuning.views import TrialView

STATE_STYLE = {"complete": "green", "pruned": "yellow", "failed": "red", "infeasible": "magenta", "running": "cyan"}
SPARKS = "▁▂▃▄▅▆▇█"
SHOWN = 10
"""Trials of a page."""


def study_page(study: StudyView, trials: Sequence[TrialView]) -> RenderableType:
    """What a study has come to: counts and cost, the best trial or front, importance, the newest trials."""
    parts: list[RenderableType] = [_counts(study)]
    if len(study.best) == 1:
        parts += [Text(), Text("Best so far", "bold"), _best(study.best[0])]
    elif study.best:
        names = ", ".join(study.best[0].values)
        parts += [Text(), Text(f"Pareto front ({names})", "bold"), trials_table(study.best)]
    if study.importances:
        parts += [Text(), Text("What matters", "bold"), _importances(study.importances)]
    if trials:
        parts += [Text(), trials_table(_worth_showing(trials))]
    return Group(*parts)


def study_head(job: JobView) -> RenderableType:
    """Which study it is, and how it stands; of one that failed, why."""
    head = Text.assemble((job.name, "bold"), "  ", (job.id, "dim"), "  ", state_text(job))
    if job.why_pending:
        head.append(f"  waits: {job.why_pending}", "yellow")
    if job.failure:
        head.append(f"\n{job.failure['code']}: {job.failure['detail']}", "red")
    return head


def _counts(study: StudyView) -> Text:
    total = sum(study.trials.values())
    text = Text(f"{total} trial{'' if total == 1 else 's'}")
    for state, number in study.trials.items():
        text.append(f"   {number} {state}", STATE_STYLE[state])
    text.append(f"   {count(study.steps)} steps")
    if study.steps_saved:
        share = study.steps_saved / (study.steps + study.steps_saved)
        text.append(f", {count(study.steps_saved)} saved by stopping early ({share:.0%})", "green")
    text.append(f"\nsampler {study.sampler}: {study.sampler_reason}", "dim")
    return text


def _best(trial: TrialView) -> RenderableType:
    values = "   ".join(f"{name} {value:.5g}" for name, value in trial.values.items())
    head = Text.assemble((f"trial {trial.number}", "green"), "  ", (values, "bold"))
    if trial.job_id:
        head.append(f"  job {trial.job_id}")
    point = Table.grid(padding=(0, 2))
    for path, value in trial.point.items():
        point.add_row(f"  {path}", _value(value))
    return Group(head, point)


def point_text(point: Mapping[str, Any]) -> str:
    """``training.learning_rate 0.0021   model.num_hidden_layers 6``"""
    return "   ".join(f"{path} {_value(value)}" for path, value in point.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _importances(importances: Mapping[str, float]) -> Table:
    table = Table.grid(padding=(0, 2))
    for path, share in importances.items():
        table.add_row(path, Text("█" * round(30 * share) or "▏", "cyan"), f"{share:.0%}")
    return table


def _worth_showing(trials: Sequence[TrialView]) -> list[TrialView]:
    """Those that run, then the newest, in all as many as fit; by number."""
    running = [trial for trial in trials if trial.state == "running"]
    ended = [trial for trial in trials if trial.state != "running"]
    chosen = [*running, *ended[::-1]][:SHOWN]
    return sorted(chosen, key=lambda trial: trial.number)


def trials_table(trials: Sequence[TrialView]) -> RenderableType:
    """A line for each trial; ``job`` is there where trials are jobs of their own."""
    return _TrialsTable(trials)


class _TrialsTable:
    """Where the terminal has no room for reasons beside the trials, they are below: of all that were not just stopped early."""

    def __init__(self, trials: Sequence[TrialView]) -> None:
        self._trials = trials

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = _table_of(self._trials, reasons=True)
        if Measurement.get(console, options.update(max_width=10_000), table).maximum <= options.max_width:
            yield table
            return
        yield _table_of(self._trials, reasons=False)
        for trial in self._trials:
            if trial.reason and trial.state != "pruned":
                yield Text.assemble(f"trial {trial.number} ", (trial.state, STATE_STYLE[trial.state]), f": {trial.reason}")


def _table_of(trials: Sequence[TrialView], *, reasons: bool) -> Table:
    paths = list(dict.fromkeys(path for trial in trials for path in trial.point))
    are_jobs = any(trial.job_id for trial in trials)
    reasons = reasons and any(trial.reason for trial in trials)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for column in ("trial", "state", "steps", "value", "curve", "from", "took", *(["job"] if are_jobs else [])):
        table.add_column(column, no_wrap=True, justify="right" if column in ("trial", "steps", "value", "took") else "left")
    for name in short_names(paths):
        table.add_column(_on_two_lines(name), overflow="fold")
    if reasons:
        table.add_column("why")
    for trial in trials:
        cells: list[RenderableType] = [*_cells(trial), *([trial.job_id or ""] if are_jobs else [])]
        cells += [Text(_value(trial.point[path]) if path in trial.point else "") for path in paths]
        table.add_row(*cells, *([Text(trial.reason or "")] if reasons else []))
    return table


def _cells(trial: TrialView) -> list[RenderableType]:
    newest = trial.curve[max(trial.curve)] if trial.curve else None
    values = [*trial.values.values()] or ([] if newest is None else [newest])
    return [
        str(trial.number),
        Text(trial.state, STATE_STYLE[trial.state]),
        f"{trial.steps}/{trial.total_steps}",
        "  ".join(f"{value:.5g}" for value in values),
        spark([trial.curve[step] for step in sorted(trial.curve)]),
        trial.sampler if trial.parent is None else f"trial {trial.parent} at {trial.at_step}",
        "" if trial.ended_at is None else duration((trial.ended_at - trial.started_at).total_seconds()),
    ]


def short_names(paths: Sequence[str]) -> list[str]:
    """The end of each dotted path that tells it from the others: ``learning_rate``, ``betas.0``."""
    found = []
    for path in paths:
        parts = path.split(".")
        ends = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        alone = (end for end in ends if not end[0].isdigit() and sum(f".{each}".endswith(f".{end}") for each in paths) == 1)
        found.append(next(alone, path))
    return found


def _on_two_lines(name: str) -> str:
    """A long name broken at the underscore that is nearest to its middle: it is wider than its values."""
    breaks = [place + 1 for place, character in enumerate(name) if character == "_"]
    if len(name) <= 8 or not breaks:
        return name
    middle = min(breaks, key=lambda place: abs(2 * place - len(name)))
    return f"{name[:middle]}\n{name[middle:]}"


def spark(values: Sequence[float], width: int = 16) -> str:
    """A curve of block characters, the highest value the tallest."""
    shown = [values[i * len(values) // width] for i in range(width)] if len(values) > width else list(values)
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((value - low) * scale)] for value in shown)

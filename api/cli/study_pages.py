"""A study on the terminal: what is best so far, what matters, what it cost. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from api.cli.text import count, duration
from service.studies import StudyView
from tuning.views import TrialView

STATE_STYLE = {"complete": "green", "pruned": "yellow", "failed": "red", "infeasible": "magenta", "running": "cyan"}
SPARKS = "▁▂▃▄▅▆▇█"
SHOWN = 10
"""Trials of a page."""


def study_page(study: StudyView, trials: Sequence[TrialView]) -> RenderableType:
    """What a study has come to: counts and cost, the best trial or front, importance, the newest and the best trials."""
    parts: list[RenderableType] = [_counts(study)]
    if study.best:
        parts += [Text(), Text("Best so far" if len(study.best) == 1 else "Pareto front", "bold"), _best(study.best)]
    if study.importances:
        parts += [Text(), Text("What matters", "bold"), _importances(study.importances)]
    if trials:
        parts += [Text(), trials_table(_worth_showing(study, trials))]
    return Group(*parts)


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


def _best(trials: Sequence[TrialView]) -> Table:
    table = Table.grid(padding=(0, 2))
    for trial in trials:
        values = "   ".join(f"{name} {value:.5g}" for name, value in trial.values.items())
        job = [f"job {trial.job_id}"] if trial.job_id else []
        table.add_row(Text(f"trial {trial.number}", "green"), Text(values, "bold"), Text(point_text(trial.point)), *job)
    return table


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


def _worth_showing(study: StudyView, trials: Sequence[TrialView]) -> list[TrialView]:
    """Those that run, then the newest, in all as many as fit; by number."""
    running = [trial for trial in trials if trial.state == "running"]
    ended = [trial for trial in trials if trial.state != "running"]
    chosen = [*running, *ended[::-1]][:SHOWN]
    return sorted(chosen, key=lambda trial: trial.number)


def trials_table(trials: Sequence[TrialView]) -> Table:
    """``job`` is there where trials are jobs of their own."""
    are_jobs = any(trial.job_id for trial in trials)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for column in ("trial", "state", "steps", "value", "curve", "from", "took", *(["job"] if are_jobs else [])):
        table.add_column(column, no_wrap=True, justify="right" if column in ("trial", "steps", "value", "took") else "left")
    table.add_column("point", overflow="fold")
    table.add_column("why", overflow="fold")
    for trial in trials:
        newest = trial.curve[max(trial.curve)] if trial.curve else None
        values = [*trial.values.values()] or ([] if newest is None else [newest])
        took = "" if trial.ended_at is None else duration((trial.ended_at - trial.started_at).total_seconds())
        table.add_row(
            str(trial.number),
            Text(trial.state, STATE_STYLE[trial.state]),
            f"{trial.steps}/{trial.total_steps}",
            "  ".join(f"{value:.5g}" for value in values),
            spark([trial.curve[step] for step in sorted(trial.curve)]),
            trial.sampler if trial.parent is None else f"trial {trial.parent} at {trial.at_step}",
            took,
            *([trial.job_id or ""] if are_jobs else []),
            Text(point_text(trial.point)),
            Text(trial.reason or ""),
        )
    return table


def spark(values: Sequence[float], width: int = 16) -> str:
    """A curve of block characters, the highest value the tallest."""
    shown = [values[i * len(values) // width] for i in range(width)] if len(values) > width else list(values)
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((value - low) * scale)] for value in shown)

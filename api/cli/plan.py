"""`manta plan`: a job file as what it would run, in the shape of the API's own plan, and as a page."""

from dataclasses import dataclass
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from api.cli.text import count, size
from service.spec import TrainJob, TuneJob
from service.validation import parse_spec
from workers.plan import Plan, plan

PARTS = {
    "parameters": "parameters (fp32)",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "gathered": "gathered copies",
    "activations": "activations",
}
PEAKS = {
    "loss": "at its peak, where the loss is computed",
    "backward": "at its peak, in the backward pass",
    "update": "at its peak, where the optimizer steps",
}


@dataclass(frozen=True)
class Planned:
    """A resolved spec, and what it would run; ``plan`` None for a kind that trains nothing."""

    spec: dict[str, Any]
    plan: Plan | None

    @property
    def runnable(self) -> bool:
        return self.plan is None or not self.plan.problems


def make(document: dict[str, Any]) -> Planned:
    """Raises SpecInvalid."""
    spec = parse_spec(document)
    base = spec.base if isinstance(spec, TuneJob) else spec if isinstance(spec, TrainJob) else None
    return Planned(spec.model_dump(mode="json"), plan(base) if base is not None else None)


def as_document(planned: Planned) -> dict[str, Any]:
    """What ``-o json`` prints: as the API answers ``POST /plan``."""
    return {"spec": planned.spec, **(planned.plan.model_dump(mode="json") if planned.plan else {})}


def page(planned: Planned) -> RenderableType:
    """The resolved spec as YAML that could be submitted, then the figures, then what is wrong with them."""
    first = {name: planned.spec[name] for name in ("kind", "name")}
    text = Text(yaml.safe_dump(first | planned.spec, sort_keys=False, allow_unicode=True).rstrip())
    if planned.plan is None:
        return text
    of_a_trial = [Text("One trial, as base has it", "bold")] if planned.spec["kind"] == "tune" else []
    return Group(text, Text(), *of_a_trial, _figures(planned.plan), Text(), _memory(planned.plan), *_remarks(planned.plan))


def _figures(plan: Plan) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(justify="right")
    grid.add_column(style="dim")
    parameters = plan.parameters
    parts = ", ".join(f"{name.replace('_', ' ')} {count(number)}" for name, number in parameters.by_part.items() if number)
    if plan.preset is not None:
        grid.add_row("model", escape(plan.preset.name), escape(plan.preset.source))
    grid.add_row("parameters", f"[bold]{count(parameters.total)}[/]", f"{count(parameters.active)} active for one token")
    grid.add_row("", "", parts)
    grid.add_row("workers", str(plan.world_size), f"micro-batches of each in a step: {plan.micro_batches_per_worker}")
    grid.add_row("steps", count(plan.steps), f"{count(plan.tokens_per_step)} tokens each")
    grid.add_row("tokens", count(plan.tokens), f"vocabulary of {count(plan.vocab_size)}")
    grid.add_row("work", f"{plan.flops:.2e}", f"floating-point operations, {plan.flops_per_token:.2e} a token")
    return grid


def _memory(plan: Plan) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(justify="right")
    grid.add_column(style="dim")
    grid.add_row("memory a worker", f"[bold]{size(plan.memory.total)}[/]", PEAKS[plan.memory.peak])
    for name, title in PARTS.items():
        grid.add_row(f"  {title}", size(getattr(plan.memory, name)))
    grid.add_row("blocks keep", "", "of one micro-batch, by activation_checkpointing")
    for mode, kept in plan.activations.items():
        grid.add_row(f"  {mode}", size(kept))
    return grid


def _remarks(plan: Plan) -> list[RenderableType]:
    lines: list[RenderableType] = [Text()] if plan.notes or plan.problems else []
    lines += [Text(f"note  {note}", "dim") for note in plan.notes]
    for problem in plan.problems:
        where = f"[bold red]problem[/] [cyan]{escape(problem.pointer)}[/]"
        lines.append(Text.from_markup(f"{where}  {escape(problem.detail)} [dim]({escape(problem.code)})[/]"))
    return lines

"""What a study shows of itself, over the API and in the terminal. Pydantic and nothing heavy."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Standing = Literal["running", "complete", "pruned", "failed", "infeasible"]
"""What a trial came to: ``pruned`` was stopped early, ``infeasible`` is beyond a limit."""


class TrialView(BaseModel):
    number: int
    state: Standing
    point: dict[str, Any]
    """Dotted paths into a training job, and their values."""
    values: dict[str, float]
    """Of the objectives, by metric; empty until it is complete."""
    curve: dict[int, float]
    """Optimizer step -> first objective, as far as it was measured on the way."""
    steps: int
    """Optimizer steps that it has cost, as far as is known."""
    total_steps: int
    sampler: str
    """What its point is from; ``base`` and ``points`` are the study's own."""
    parent: int | None
    """The trial whose weights it began with, in a population."""
    at_step: int
    """The optimizer step that it began at."""
    lineage: list[tuple[int, dict[str, Any]]]
    """In a population: the points that its weights were trained with, each from its optimizer step on."""
    reason: str | None
    """Why it was stopped, failed, or is infeasible."""
    retries: int
    metrics: dict[str, float]
    """Everything that a complete trial measured."""
    started_at: datetime
    ended_at: datetime | None
    job_id: str | None = None
    """The job that trains it, where trials are jobs of their own. The service fills it in; no journal has it."""


class StudySummary(BaseModel):
    best: list[TrialView]
    """The best feasible trial; of several objectives, the Pareto front."""
    trials: dict[Standing, int]
    steps: int
    """Optimizer steps of all trials."""
    steps_saved: int
    """What stopped trials would have cost more; nothing in a population, where others train on in their places."""
    seconds: float
    sampler: str
    sampler_reason: str


class Figures(BaseModel):
    """Of one optimizer step. ``id`` grows with every write, so a step that is done again comes again."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    id: int
    step: int
    values: dict[str, float]


class ChildView(BaseModel):
    """The job of a trial, as the study's driver sees it."""

    job_id: str
    state: str
    reason: str
    """``study``: it is in that state because the study asked for it, or was itself asked."""
    failure: dict[str, Any] | None
    """``{code, detail, ...}`` of a failed job."""
    result: dict[str, Any] | None
    """``workers.attempt.Summary`` of one that succeeded."""
    figures: list[Figures] = []
    """What is new, by id; as many as one look brings at most."""

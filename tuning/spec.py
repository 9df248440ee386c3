"""What one study is: a training job, the fields of it to search over, and how. Pydantic and nothing heavy.

Names follow Optuna (``low``, ``high``, ``log``, ``step``, ``choices``) for parameters and Ray Tune for schedulers.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_serializer,
    model_validator,
)

from data.spec_base import Misfit, Seed, Spec
from tuning.changeable import CHANGEABLE, may_change
from tuning.expressions import Expression
from tuning.parameters import Parameter, alternatives, grid_size, parents_first, same
from tuning.paths import Path, put
from workers.spec import TrainingSpec, TrainSpec


class Objective(Spec):
    metric: str = "eval_loss"
    """Of a trial's figures: what training reports (``eval_loss``, ``loss``, ``tokens_per_second``, ...) or ``seconds``, the
    time of its training."""
    direction: Literal["minimize", "maximize"] = "minimize"


AT_THE_END = ("train_loss", "seconds", "memory_bytes")
"""Metrics that a trial reports only when it ends."""


class Limit(Spec):
    """What a trial may measure. One that measures more is infeasible: no bad result, and no result at all."""

    metric: str
    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.at_most is None and self.at_least is None:
            raise Misfit("give at_most, at_least or both", "at_most")
        return self


MOST_GRID_POINTS = 100_000
"""All of them are held, in a random order."""

SamplerName = Literal["auto", "gp", "tpe", "cmaes", "random", "grid", "evolution", "qmc", "bandit"]


class SamplerSpec(Spec):
    type: SamplerName = "auto"
    startup_trials: int | None = Field(default=None, ge=0)
    """Trials spread evenly before a model is fitted; None: as the sampler's authors advise."""
    population: int = Field(default=32, ge=2)
    """``evolution``: points of a generation."""
    arms: tuple[Literal["gp", "tpe", "cmaes", "random", "evolution", "qmc"], ...] = ("gp", "tpe", "cmaes", "qmc")
    """``bandit``: the samplers that trials are dealt to."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"type": given} if isinstance(given, str) else given


class NoScheduler(Spec):
    """Every trial trains to its end."""

    type: Literal["none"] = "none"


class AshaScheduler(Spec):
    """Asynchronous successive halving (arXiv 1810.05934), the variant that stops: a trial goes on from a rung if it is among
    the best ``1 / reduction_factor`` of those that came so far, as long as less than 1.5 times that share has gone on."""

    type: Literal["asha"] = "asha"
    grace_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of the first rung; None: the run's steps over ``reduction_factor`` cubed."""
    reduction_factor: int = Field(default=3, ge=2)


class HyperbandScheduler(Spec):
    """Hyperband (arXiv 1603.06560): trials are dealt to brackets of ASHA that begin to stop at ever later rungs. Each judges
    its own as ASHA does."""

    type: Literal["hyperband"] = "hyperband"
    grace_steps: int | None = Field(default=None, ge=1)
    reduction_factor: int = Field(default=3, ge=2)


class PopulationScheduler(Spec):
    """Population-based training (arXiv 1711.09846): all members train to the end; every ``interval`` steps the worst go on with
    the weights and optimizer of the best, and other values near theirs. Only fields that may change in the middle of a run
    are searched."""

    type: Literal["pbt"] = "pbt"
    population: int = Field(default=8, ge=2)
    interval: int = Field(ge=1)
    """Optimizer steps between exploits, which are at the first evaluation at or after each multiple of it."""
    quantile: float = Field(default=0.25, gt=0, le=0.5)
    """This share of the members, at least one, copies; as many may be copied."""
    resample_probability: float = Field(default=0.25, ge=0, le=1)
    """With which a copied value is drawn anew from its range; else a number is multiplied by 0.8 or 1.2, and of choices a
    neighbour is taken."""

    def exploit_steps(self, training: TrainingSpec, total_steps: int) -> list[int]:
        every = training.eval_interval or total_steps
        steps = (-(-multiple // every) * every for multiple in range(self.interval, total_steps, self.interval))
        return [step for step in dict.fromkeys(steps) if step < total_steps]


Scheduler = Annotated[NoScheduler | AshaScheduler | HyperbandScheduler | PopulationScheduler, Field(discriminator="type")]


class Budget(Spec):
    """The study ends with whichever is spent first."""

    trials: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of all trials together."""
    seconds: float | None = Field(default=None, gt=0)
    """Of all attempts at the study together, while it runs."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.trials is None and self.steps is None and self.seconds is None:
            raise Misfit("give trials, steps or seconds", "trials")
        return self


class BaseJob(TrainSpec):
    """A training job that remembers, and is stored, as it was given: what follows from other fields follows anew in a trial."""

    _given: dict[str, JsonValue] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _remember(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        job = handler(given)
        if isinstance(given, dict):
            job._given = given
        return job

    @model_serializer(mode="plain")
    def as_given(self) -> dict[str, JsonValue]:
        return self._given


class StudySpec(Spec):
    """One study. ``base`` with a point of ``space`` put into it is a trial."""

    base: BaseJob = BaseJob()
    space: dict[Path, Parameter] = Field(min_length=1)
    constraints: tuple[Expression, ...] = ()
    """What must hold between the fields of a job, such as ``model.hidden_size % model.num_attention_heads == 0``. Points where
    one does not, or that are no job, are never tried."""
    points: tuple[dict[Path, JsonValue], ...] = ()
    """Points that are known to be good; they are tried first, after ``base`` itself. What one leaves out is as in ``base``."""
    objectives: tuple[Objective, ...] = Field(default=(Objective(),), min_length=1, max_length=3)
    limits: tuple[Limit, ...] = ()
    sampler: SamplerSpec = SamplerSpec()
    scheduler: Scheduler = NoScheduler()
    budget: Budget = Budget(trials=50)
    trials: Literal["auto", "inside", "jobs"] = "auto"
    """Where trials train: ``inside`` the study's own attempt, in warm workers, one worker a trial; or as ``jobs`` of their own,
    each with its place in the queue and its attempts. ``auto``: as jobs where ``base`` takes more than one worker, or the space
    has what a trial takes of the cluster (``parallel_strategy``, ``gpu_config``)."""
    concurrent_trials: int = Field(default=1, ge=1)
    """So many trials train at once; the study waits for the resources of all of them, unless they are jobs."""
    max_retries: int = Field(default=1, ge=0)
    """How often a trial that failed is run again before it counts as failed."""
    warm_start: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ()
    """Earlier studies over the same space and for the same objectives, by id or name: their complete trials are known from the
    start, and count for no budget."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _space_fits(self) -> Self:
        parents_first(self.space)
        for path, parameter in self.space.items():
            if parent := next((other for other in self.space if path.startswith(f"{other}.")), None):
                raise Misfit(f"{path} lies inside {parent}, which is searched too", ("space", path))
            for parent, values in parameter.when.items():
                for value in alternatives(values):
                    if not _takes(self.space[parent], value):
                        raise Misfit(f"{value!r} is no value of {parent}", ("space", path, "when", parent))
            for value in parameter.ends:
                if why := self._refused(path, value):
                    raise Misfit(f"{path} cannot be {value!r}: {why}", ("space", path))
        return self

    @property
    def trials_are_jobs(self) -> bool:
        searched = any(path.partition(".")[0] in ("parallel_strategy", "gpu_config") for path in self.space)
        return self.trials == "jobs" or (self.trials == "auto" and (searched or self.base.world_size > 1))

    def _refused(self, path: str, value: Any) -> str | None:
        """Why a field does not take a value, whatever the others are."""
        try:
            TrainSpec.model_validate(put(self.base.as_given(), path, value, self.base))
        except ValidationError as error:
            here = tuple(path.split("."))
            for each in error.errors(include_url=False):
                if tuple(str(part) for part in each["loc"])[: len(here)] == here and not _is_misfit(each):
                    return str(each["msg"])
        return None

    @model_validator(mode="after")
    def _points_fit(self) -> Self:
        for number, point in enumerate(self.points):
            for path, value in point.items():
                where = ("points", number, path)
                if path not in self.space:
                    raise Misfit(f"{path} is not in the space", where)
                if not _takes(self.space[path], value):
                    raise Misfit(f"{value!r} is no value of {path}", where)
        return self

    @model_validator(mode="after")
    def _trials_fit(self) -> Self:
        if self.trials == "inside" and self.base.world_size > 1:
            where = ("base", "parallel_strategy", "data_parallel")
            raise Misfit(f"a trial inside the study has one worker, not {self.base.world_size}", "trials", where)
        return self

    @model_validator(mode="after")
    def _search_fits(self) -> Self:
        if self.sampler.type == "grid":
            self._require_a_grid()
        if self.sampler.type == "cmaes" and len(self.objectives) > 1:
            raise Misfit("cmaes searches for one objective", "sampler", "objectives")
        if self.scheduler.type != "none":
            if len(self.objectives) > 1:
                raise Misfit(f"{self.scheduler.type} compares trials by one objective", "scheduler", "objectives")
            if (metric := self.objectives[0].metric) in AT_THE_END:
                raise Misfit(
                    f"{self.scheduler.type} compares trials on their way, and {metric} is known only at the end; choose another"
                    " objective, such as eval_loss, or no scheduler",
                    ("objectives", 0, "metric"),
                    "scheduler",
                )
            if self.base.training.eval_interval is None and "training.eval_interval" not in self.space:
                raise Misfit(
                    f"{self.scheduler.type} compares trials by their held-out loss; set training.eval_interval",
                    "base.training.eval_interval",
                    "scheduler",
                )
        return self

    def _require_a_grid(self) -> None:
        for path, parameter in self.space.items():
            if parameter.count is None:
                raise Misfit(f"grid needs a step or choices for {path}", ("space", path), "sampler")
        in_order = {path: self.space[path] for path in parents_first(self.space)}
        if grid_size(in_order, MOST_GRID_POINTS) > MOST_GRID_POINTS:
            detail = (
                f"a grid has at most {MOST_GRID_POINTS:,} points, and this one more; larger steps, or qmc or random, would do"
            )
            raise Misfit(detail, "space", "sampler")

    @model_validator(mode="after")
    def _population_fits(self) -> Self:
        if not isinstance(self.scheduler, PopulationScheduler):
            return self
        if self.trials_are_jobs:
            where = ("trials", "base.parallel_strategy.data_parallel")
            raise Misfit("the members of a population train inside the study, on one worker each, and not as jobs", *where)
        for path in self.space:
            if not may_change(path):
                known = ", ".join(CHANGEABLE)
                raise Misfit(f"{path} cannot change in the middle of a run, as pbt has it; these can: {known}", ("space", path))
        if self.sampler.type not in ("auto", "qmc", "random"):
            raise Misfit(
                f"a population begins before {self.sampler.type} knows anything; choose auto, qmc or random", "sampler"
            )
        if self.budget.trials is not None and self.budget.trials < self.scheduler.population:
            detail = (
                f"a population of {self.scheduler.population} needs as many trials, and the budget has {self.budget.trials}"
            )
            raise Misfit(detail, "budget.trials", "scheduler.population")
        training, total = self.base.training, self.base.total_steps
        if not self.scheduler.exploit_steps(training, total):
            detail = f"no evaluation (every {training.eval_interval} steps) lies between step {self.scheduler.interval} and the"
            raise Misfit(f"{detail} end at {total}: nothing would be exploited", "scheduler.interval")
        return self


def _takes(parameter: Parameter, value: JsonValue) -> bool:
    return same(parameter.nearest(value), value)


def _is_misfit(error: Any) -> bool:
    return error["type"] == "value_error" and isinstance(error["ctx"]["error"], Misfit)

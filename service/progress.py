"""Progress of a job's phases: newest figures stand; rate and time left come from the last few reports. Pure."""

from typing import Any, TypedDict

from service.spec import KINDS
from service.views import PhaseView

WINDOW_SECONDS = 15.0
"""Rates are taken over this much of the past."""
MAX_SAMPLES = 32


class PhaseProgress(TypedDict):
    """What ``jobs.progress`` keeps of one phase."""

    attempt: int
    generation: int
    done: int
    total: int | None
    unit: str
    reused: bool
    samples: list[list[float]]
    """``[time, done]``, ascending in time."""


def advance(old: PhaseProgress | None, new: PhaseProgress) -> PhaseProgress:
    """``old`` with one more report in it: the newest (attempt, generation) stands; within it, the furthest.

    The order in which reports arrive does not matter to the figures.
    """
    if old is None:
        return new
    age, older = (new["attempt"], new["generation"]), (old["attempt"], old["generation"])
    if age < older:
        return old
    if age > older:
        return new
    furthest = max(old, new, key=lambda each: (each["done"], each["total"] or 0))
    merged = sorted(old["samples"] + new["samples"])
    recent = [sample for sample in merged if sample[0] >= merged[-1][0] - WINDOW_SECONDS]
    return {**furthest, "reused": old["reused"] or new["reused"], "samples": recent[-MAX_SAMPLES:]}


def rate(samples: list[list[float]]) -> float | None:
    """Units a second from the first sample to the last; None with fewer than two moments."""
    if len(samples) < 2 or samples[-1][0] <= samples[0][0]:
        return None
    return max(samples[-1][1] - samples[0][1], 0.0) / (samples[-1][0] - samples[0][0])


def phase_views(kind: str, progress: dict[str, Any], *, live: bool) -> list[PhaseView]:
    """The phases that were begun, in the kind's order. A job that is not live has no rate and no time left."""
    views = []
    for phase in KINDS[kind].phases:
        kept: PhaseProgress | None = progress.get(phase.value)
        if kept is None:
            continue
        speed = rate(kept["samples"]) if live else None
        total = kept["total"]
        eta = (total - kept["done"]) / speed if speed and total is not None and total >= kept["done"] else None
        views.append(
            PhaseView(
                phase=phase.value,
                done=kept["done"],
                total=total,
                unit=kept["unit"],
                reused=kept["reused"],
                rate=speed,
                eta_seconds=eta,
            )
        )
    return views

"""What flows through the data room."""

from dataclasses import dataclass


@dataclass(slots=True)
class Document:
    """One text. ``id`` says where it lies (``file:line``) for people who look for it."""

    text: str
    id: str
    language: str
    domain: str
    url: str = ""
    """Where it was found; empty where that is not known."""
    grade: int | None = None
    """Its quality, 0 to 4, where a stage has judged it."""
    scores: dict[str, float] | None = None
    """What stages have measured of it, by name (``toxicity_hate``), where one has."""
    redactions: dict[str, int] | None = None
    """Values that were redacted by the last stage that looked for some, by kind, where it found any."""


@dataclass(frozen=True, slots=True)
class Bad:
    """What a source holds in place of a document: ``reason`` is counted, ``detail`` names file and line."""

    reason: str
    detail: str
    field: str = "path"
    """The field of the source's spec that is to blame."""
    tolerated: bool = False
    """Whether it is counted even where a bad document stops the work: archives of the web are full of it."""

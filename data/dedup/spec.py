"""How duplicates are found. Pydantic and nothing heavy is imported here."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data.spec_base import Misfit, Seed, Share, Spec


class _DuplicatesSpec(Spec):
    memory_bytes: int = Field(default=256 * 2**20, ge=2**18)
    """Working memory of a task, and of the driver. A larger corpus makes more tasks, not larger ones; it never changes what is
    found, but that of a bucket beyond it only the first documents are compared where candidates are verified."""


class ExactSpec(_DuplicatesSpec):
    """Documents whose text is equal but for case and white space; the first in reading order is kept."""

    method: Literal["exact"] = "exact"


class _NearSpec(_DuplicatesSpec):
    """What the ways to find near duplicates share. Equal documents are found by all of them."""

    ngram: int = Field(default=5, ge=1, le=32)
    """Words in a shingle; characters where words are not written apart (Chinese, Japanese, Thai ...)."""
    keep: Literal["first", "longest", "all"] = "first"
    """Which document of a cluster stays: the first in reading order, the longest, or all but copies, so that clusters only
    keep what is alike on one side of the held-out split."""


class SimHashSpec(_NearSpec):
    """Charikar (STOC 2002) with the tables of Manku, Jain and Das Sarma (WWW 2007): fingerprints of 64 bits that differ in at
    most ``hamming``. All such pairs are found, short of extreme crowds, and no others. Blind to more than a few changed words.
    """

    method: Literal["simhash"] = "simhash"
    hamming: int = Field(default=3, ge=0, le=15)
    blocks: int = Field(default=4, ge=1, le=16)
    """The fingerprint is cut into so many; there is a table for every choice of ``blocks - hamming`` of them. 4 blocks are 4
    tables of 16 bits, 6 are 20 of about 32. Rows of a table that are long are cut by the bits that the table leaves."""

    @model_validator(mode="after")
    def _blocks_suffice(self) -> Self:
        if self.blocks <= self.hamming:
            raise Misfit(
                f"{self.blocks} blocks cannot show fingerprints that differ in {self.hamming} bits: there must be more blocks",
                *("blocks", "hamming"),
            )
        return self


class MinHashSpec(_NearSpec):
    """MinHash (Broder 1997) with banded locality-sensitive hashing: a pair of shingle Jaccard ``s`` is found with probability
    ``1 - (1 - s^rows)^bands``. FineWeb's 14 x 8 (Penedo et al. 2024): 0.053 at 0.5, 0.77 at 0.75, 0.924 at 0.8, 0.988 at 0.85.
    """

    method: Literal["minhash"] = "minhash"
    bands: int = Field(default=14, ge=1, le=256)
    rows: int = Field(default=8, ge=1, le=64)
    min_agreement: Share | None = None
    """Candidates must also agree in this share of all ``bands * rows`` values, an estimate of their Jaccard similarity with a
    standard error of about 0.045. None takes every candidate, as published."""
    seed: Seed = 0


DeduplicateSpec = Annotated[ExactSpec | SimHashSpec | MinHashSpec, Field(discriminator="method")]
NearSpec = SimHashSpec | MinHashSpec

_BY_NAME: Mapping[str, Spec | None] = {
    "none": None,
    "exact": ExactSpec(),
    "simhash": SimHashSpec(),
    "minhash": MinHashSpec(),
}


def given_deduplicate(value: Any) -> Any:
    """``true`` (exact), ``false`` (off) or a method's name as its settings."""
    if isinstance(value, bool):
        return ExactSpec() if value else None
    if isinstance(value, str):
        if value not in _BY_NAME:
            raise ValueError(f"{value!r} is no way to deduplicate; there are {', '.join(_BY_NAME)}")
        return _BY_NAME[value]
    return value

"""What training documents must not repeat. Pydantic and nothing heavy is imported here."""

from pathlib import PurePosixPath
from typing import Any, Self

from pydantic import Field, model_validator

from data.spec_base import Misfit, Share, Spec


class BenchmarkSpec(Spec):
    """A test set that a model will be measured on: each of its documents is one item."""

    path: str
    """As of a source: a path or glob, local or on object storage."""
    text_field: str = "text"
    """The field that holds the text of an item, in JSON lines and Parquet."""
    name: str = ""
    """For the report; by default the file's name."""

    @property
    def title(self) -> str:
        return self.name or PurePosixPath(self.path).name.partition(".")[0]


class DecontaminateSpec(Spec):
    """Training documents that have too many n-grams in common with a held-out document or with an item of a test set go.

    How much is too much is a share of the n-grams of the two's shorter one, so that an item inside a long document counts, and
    so does a paragraph out of a long item. Units are words; characters in scripts that write no spaces between words (Chinese,
    Japanese, Thai ...). Case, punctuation, white space and Unicode's compatible forms count for nothing.
    """

    ngram: int = Field(default=13, ge=1, le=64)
    """Words in an n-gram: 13 as for GPT-3 (Brown et al. 2020, appendix C); Tülu 3 (Lambert et al. 2024) takes 8."""
    character_ngram: int = Field(default=20, ge=1, le=64)
    """Characters in an n-gram of an item that is mostly written without spaces: one and a half stand for a word."""
    min_overlap: Share = 0.5
    """A document with at least this share goes: half, as for Tülu 3. 0: one common n-gram is enough, as for GPT-3."""
    held_out: bool = True
    """Compare with the held-out split, which near duplicates of its documents would spoil."""
    test_sets: tuple[BenchmarkSpec, ...] = ()
    memory_bytes: int = Field(default=256 * 2**20, ge=2**18)
    """Working memory of one task. More held-out text makes more tasks, not larger ones, and never changes what is found."""

    @model_validator(mode="after")
    def _compares_with_something(self) -> Self:
        if not self.held_out and not self.test_sets:
            raise Misfit("there is nothing to compare with: name test_sets, or let held_out be true", "test_sets", "held_out")
        return self


def given_decontaminate(value: Any) -> Any:
    """``true`` (with the defaults) or ``false`` and ``none`` (off) as settings."""
    if value is True:
        return DecontaminateSpec()
    return None if value is False or value == "none" else value

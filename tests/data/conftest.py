"""Small corpora on disk, and a preparation of them."""

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data.executors import SerialExecutor
from data.prepare import Prepared, Progress, prepare
from data.spec import DataSpec, SourceSpec, TokenizerSpec

WORDS = (
    *("river", "stone", "lantern", "quiet", "harbour", "window", "thread"),
    *("copper", "meadow", "signal", "winter", "orchard", "ledger", "candle"),
)


def texts(count: int, seed: int = 0, words: int = 40) -> list[str]:
    """Different short documents."""
    rng = random.Random(seed)
    return [f"Document {seed}.{i}. " + " ".join(rng.choices(WORDS, k=rng.randint(8, words))) for i in range(count)]


def json_lines(documents: Sequence[Any], field: str = "text") -> bytes:
    return b"".join(json.dumps({field: text}, ensure_ascii=False).encode() + b"\n" for text in documents)


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return str(path)


def data_spec(*sources: SourceSpec | str, **settings: Any) -> DataSpec:
    given = tuple(SourceSpec(path=source) if isinstance(source, str) else source for source in sources)
    return DataSpec.model_validate(
        {"sources": given, "sequence_length": 32, "stages": ["normalise", {"stage": "length", "min_characters": 8}], **settings}
    )


Preparation = Callable[..., Prepared]


@pytest.fixture
def preparation(tmp_path: Path) -> Preparation:
    """Prepares a spec serially below ``tmp_path/prepared``."""

    def run(spec: DataSpec, progress: list[Progress] | None = None, **tokenizer: Any) -> Prepared:
        steps = progress if progress is not None else []
        small = TokenizerSpec(**{"vocab_size": 300, **tokenizer})
        return prepare(spec, small, tmp_path / "prepared", SerialExecutor(), steps.append)

    return run

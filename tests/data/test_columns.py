"""Whatever goes through the columns of a corpus can be stopped there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.columns import SPAN, filtered, pulsed
from data.corpus import Documents
from data.dedup.clusters import Duplicates
from data.selection import held_out, partition, sample

PASSES: dict[str, Callable[[Documents, Duplicates, Path], Any]] = {
    "what is kept": lambda documents, found, folder: documents.take(found.keep, folder / "taken"),
    "a column of it": lambda documents, found, folder: filtered(folder / "column", documents.cell_N, found.keep),
    "amounts": lambda documents, found, folder: documents.amounts(1),
    "duplicates": lambda documents, found, folder: found.count(documents),
    "clusters": lambda documents, found, folder: found.sizes(folder),
    "the split": lambda documents, found, folder: held_out(documents.hash_N, documents.cell_N, 0.1, 0),
    "segments": lambda documents, found, folder: partition(
        documents.hash_N, documents.bytes_N, documents.cell_N, [0.5, 0.5], 0
    ),
    "the sample": lambda documents, found, folder: sample(
        documents.hash_N, documents.bytes_N, documents.cell_N, [1.0], SPAN // 2, 0
    ),
}


class Stop(Exception):
    pass


@pytest.mark.parametrize("through", PASSES.values(), ids=PASSES)
def test_a_pass_over_documents_ends_where_its_pulse_says_so(
    through: Callable[[Documents, Duplicates, Path], Any], tmp_path: Path
) -> None:
    number_N = np.arange(SPAN + 1)
    nothing = np.zeros(len(number_N), np.int64)
    columns = [number_N.astype(np.uint64) << np.uint64(40), nothing, number_N, nothing + 1, nothing]
    documents = Documents._of([tmp_path / "part.arrow"], [columns], tmp_path / "columns")
    found = Duplicates(number_N, number_N, number_N, nothing == 0)
    calls: list[None] = []

    def pulse() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise Stop

    with pytest.raises(Stop), pulsed(pulse):
        through(documents, found, tmp_path)
    through(documents, found, tmp_path)
    assert len(calls) == 2

"""What the bench checks before it times anything."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

from tests.bench.train import LENGTH, ROWS, batch_of, require_agreement, shards

LOSSES = {"fp32": [9.0, 8.0], "hf_fp32": [9.00005, 8.0], "bf16": [9.01, 8.0], "hf_autocast": [9.0, 8.005]}


def test_losses_that_agree_are_measured() -> None:
    assert require_agreement(LOSSES) == pytest.approx({"fp32": 5e-5, "bf16": 0.01})


@pytest.mark.parametrize(("name", "losses"), [("fp32", [9.0, 8.001]), ("bf16", [9.0, 8.1]), ("hf_autocast", [9.0, 7.9])])
def test_losses_that_do_not_agree_end_the_bench(name: str, losses: list[float]) -> None:
    with pytest.raises(AssertionError, match="here"):
        require_agreement(LOSSES | {name: losses})


def test_a_model_that_learns_nothing_ends_the_bench() -> None:
    with pytest.raises(AssertionError, match="nothing is learned"):
        require_agreement({name: [9.0, 9.0] for name in LOSSES})


def test_every_row_is_one_document_and_no_step_reads_another_s(tmp_path: Path) -> None:
    dataset = shards(tmp_path, steps=2)
    first, second = batch_of(dataset, 0), batch_of(dataset, 1)
    for batch in (first, second):
        assert batch.tokens.shape == (ROWS, LENGTH)
        assert not batch.document_ids.any()
        assert (batch.positions == np.arange(LENGTH)).all()
    assert (first.tokens != second.tokens).any()

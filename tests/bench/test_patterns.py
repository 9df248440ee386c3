"""The bench's own arithmetic, and that its jobs are what it says."""

import pytest

from tests.bench.patterns import BASE, RUNS, spec, verdicts


def test_all_runs_read_the_same_rows_and_differ_in_what_is_compared_only() -> None:
    base = spec(BASE, 0)
    patterns = set()
    for run in RUNS:
        each = spec(run, 0)
        assert (each.data_pipeline, each.tokenizer) == (base.data_pipeline, base.tokenizer)
        assert each.training.model_copy(update={"precision": base.training.precision}) == base.training
        patterns.add("segments" if each.model.segment_length else each.model.attention_pattern)
    assert patterns == {"full", "sliding", "layered", "hierarchical", "segments"}
    assert {spec(run, 0).training.precision for run in RUNS} == {"fp32", "bf16"}


def test_a_mean_may_be_two_hundredths_away_or_two_standard_deviations() -> None:
    losses = {BASE: [5.0, 5.1, 5.2], "steady": [5.12, 5.12, 5.12], "wide": [5.0, 5.3, 5.6]}
    found = verdicts(losses)
    assert set(found) == {"steady", "wide"}
    # The pooled variance of 0.1 and 0.
    assert found["steady"] == {"above_full_fp32": 0.02, "allowed": pytest.approx(2 * (0.01 / 2) ** 0.5, abs=1e-4)}
    assert found["wide"] == {"above_full_fp32": 0.2, "allowed": pytest.approx(2 * ((0.01 + 0.09) / 2) ** 0.5, abs=1e-4)}
    assert verdicts({BASE: [5.0, 5.0], "same": [5.0, 5.0]})["same"]["allowed"] == 0.02

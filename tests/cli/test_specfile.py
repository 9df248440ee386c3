"""Paths in a job file mean what they mean in the caller's shell."""

from pathlib import Path
from typing import Any

import pytest

from api.cli.specfile import with_absolute_paths


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("models/one", "/here/models/one"),
        ("/models/one", "/models/one"),
        ("~/one", "~/one"),
        ("model:quickstart@20", "model:quickstart@20"),
        ("s3://bucket/one", "s3://bucket/one"),
        ("", ""),
        (7, 7),
        (None, None),
    ],
)
def test_the_weights_to_begin_with_are_seen_from_the_current_directory(given: Any, sent: Any) -> None:
    assert with_absolute_paths({"init_from": given}, Path("/here")) == {"init_from": sent}


def test_a_job_without_them_stays_so() -> None:
    assert with_absolute_paths({"name": "plain"}, Path("/here")) == {"name": "plain"}

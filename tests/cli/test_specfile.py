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


def test_every_file_of_the_data_pipeline_is_seen_from_the_current_directory() -> None:
    def pipeline(here: str) -> dict[str, Any]:
        return {
            "data_pipeline": {
                "sources": [{"path": f"{here}a/*.txt", "text_field": "a/b"}, {"path": "stdlib:prose"}],
                "stages": [
                    "normalise",
                    {
                        "stage": "grade",
                        "training": {"good": [{"path": f"{here}good.jsonl"}], "poor": [{"path": "s3://b/poor"}]},
                    },
                    {"stage": "toxicity", "trained": {"path": f"{here}model.safetensors"}},
                ],
                "decontaminate": {"test_sets": [{"path": f"{here}exam.jsonl"}, {"path": "/sets/exam.jsonl"}]},
            }
        }

    assert with_absolute_paths(pipeline(""), Path("/here")) == pipeline("/here/")


@pytest.mark.parametrize("given", [None, "web", 7, [1, "a"], {"sources": "a"}, {"sources": [{"path": 3}], "stages": "web"}])
def test_what_is_no_data_pipeline_passes_unchanged(given: Any) -> None:
    assert with_absolute_paths({"data_pipeline": given}, Path("/here")) == {"data_pipeline": given}

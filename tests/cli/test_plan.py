"""`manta plan` runs nothing and asks no service."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from api.cli.main import app
from service.validation import parse_spec


def plan(tmp_path: Path, text: str, *more: str) -> Result:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return CliRunner().invoke(app, ["plan", str(path), *more])


def test_the_page_begins_with_a_spec_that_could_be_submitted(tmp_path: Path) -> None:
    ended = plan(tmp_path, "name: tiny\ntraining: {steps: 3}\n")
    assert ended.exit_code == 0
    resolved = yaml.safe_load(ended.stdout.split("\n\n")[0])
    assert parse_spec(resolved).name == "tiny"
    assert resolved["training"]["steps"] == 3
    assert resolved["model"]["n_routed_experts"] == 8


def test_it_says_what_would_run_and_what_that_takes(tmp_path: Path) -> None:
    ended = plan(tmp_path, "name: tiny\ntraining: {steps: 3}\nparallel_strategy: {data_parallel: 2}\n")
    for part in ("active for one token", "memory a worker", "optimizer", "activations", "workers", "24,576"):
        assert part in ended.stdout


def test_json_is_the_api_s_plan(tmp_path: Path) -> None:
    document = json.loads(plan(tmp_path, "name: tiny\ntraining: {steps: 3}\n", "-o", "json").stdout)
    assert document["steps"] == 3
    assert document["parameters"]["active"] < document["parameters"]["total"]
    assert document["memory"]["total"] > 0
    assert document["spec"]["name"] == "tiny"


def test_what_cannot_run_is_planned_and_named(tmp_path: Path) -> None:
    ended = plan(tmp_path, "name: tiny\nparallel_strategy: {tensor_parallel: 2}\n")
    assert ended.exit_code == 2
    assert "problem /parallel_strategy/tensor_parallel" in ended.stdout


def test_a_job_that_trains_nothing_is_only_resolved(tmp_path: Path) -> None:
    ended = plan(tmp_path, "kind: data\nname: tiny\n")
    assert ended.exit_code == 0
    assert yaml.safe_load(ended.stdout)["data_pipeline"]["sequence_length"] == 256


@pytest.mark.parametrize("text", ["name: tiny\nmodl: {}\n", "name: [\n"])
def test_a_wrong_spec_is_named_as_by_submit(text: str, tmp_path: Path) -> None:
    ended = plan(tmp_path, text)
    assert ended.exit_code == 2
    assert "error" in ended.stderr

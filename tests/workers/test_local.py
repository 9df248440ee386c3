"""The bare road: a job file, torchrun's environment, no Ray."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data.errors import MantaError
from workers.local import read_job

ROOT = Path(__file__).parents[2]


def test_a_job_file_may_say_its_name_and_kind(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "kind": "train", "training": {"steps": 3}}))
    name, spec = read_job(path)
    assert (name, spec.training.steps) == ("small", 3)


def test_only_train_jobs_run_alone(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("{name: words, kind: data}")
    with pytest.raises(MantaError, match="kind data") as caught:
        read_job(path)
    assert caught.value.pointer == "/kind"


def test_the_quickstart_is_short_and_valid() -> None:
    path = ROOT / "examples" / "quickstart.yaml"
    assert len(path.read_text().splitlines()) < 25
    name, spec = read_job(path)
    assert (name, spec.world_size) == ("quickstart", 2)


@pytest.mark.gloo
def test_torchrun_trains_on_two_ranks_and_a_second_run_finds_it_done(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"document {i}: " + "the cat sees the old house and runs " * (1 + i % 5))
    job = {
        "name": "small",
        "data_pipeline": {"sources": [{"path": str(tmp_path / "*.txt")}], "sequence_length": 32, "held_out_fraction": 0.2},
        "tokenizer": {"vocab_size": 300},
        "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "moe_intermediate_size": 16},
        "parallel_strategy": {"data_parallel": 2},
        "training": {"steps": 3, "global_batch_size": 4, "micro_batch_size": 2},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "-m", "workers.local", str(path), "--out", str(tmp_path / "out")]
    outputs = []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        outputs.append(done.stdout)
    assert "step 3  loss" in outputs[0]
    assert "step 3  loss" not in outputs[1]
    assert all('result {"steps": 3' in output for output in outputs)
    assert (tmp_path / "out" / "checkpoints" / "step-00000003" / "manifest.json").is_file()

"""The bare road: a job file, torchrun's environment, no Ray."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.errors import MantaError
from workers.local import main, read_job, run
from workers.reporter import NullReporter

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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: [", "spec_invalid: .* is no YAML: .*line 1"),
        ("just words", "spec_invalid: .* holds no mapping"),
        ("training: {stepz: 3}", "spec_invalid: .*\n/training/stepz: "),
        ("parallel_strategy: {tensor_parallel: 2}", "cannot run\nnot_supported_yet: tensor_parallel 2.*tensor_parallel.$"),
        (None, "spec_invalid: .* cannot be read: .*No such file"),
    ],
)
def test_a_job_that_cannot_run_says_why_before_anything_is_made(
    text: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["local", str(path), "--out", str(tmp_path / "out")])
    assert main() == 2
    assert re.search(message, capsys.readouterr().err.strip(), re.DOTALL)
    assert not (tmp_path / "out").exists()


def test_the_quickstart_is_short_and_valid() -> None:
    path = ROOT / "examples" / "quickstart.yaml"
    assert len(path.read_text().splitlines()) < 25
    name, spec = read_job(path)
    assert (name, spec.world_size) == ("quickstart", 2)


def small_job(tmp_path: Path) -> dict[str, Any]:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"document {i}: " + "the cat sees the old house and runs " * (1 + i % 5))
    return {
        "name": "small",
        "data_pipeline": {"sources": [{"path": str(tmp_path / "*.txt")}], "sequence_length": 32, "held_out_fraction": 0.2},
        "tokenizer": {"vocab_size": 300},
        "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "moe_intermediate_size": 16},
        "training": {"steps": 3, "global_batch_size": 4, "micro_batch_size": 2},
    }


def test_weights_to_begin_with_are_looked_at_before_the_data_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**small_job(tmp_path), "init_from": str(tmp_path / "nowhere")}))
    monkeypatch.setattr(sys, "argv", ["local", str(path), "--out", str(tmp_path / "out")])
    assert main() == 1
    assert re.search("nowhere is no directory.*\\(/init_from\\)", capsys.readouterr().err)
    assert not (tmp_path / "out" / "prepared").exists()


def test_a_start_after_one_that_torchrun_restarted_is_the_newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(small_job(tmp_path)))
    _, spec = read_job(path)
    for restarts, steps in ((2, 1), (0, 2)):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        wanted = spec.model_copy(update={"training": spec.training.model_copy(update={"steps": steps})})
        assert run(wanted, tmp_path / "out", NullReporter()).step == steps
        assert (tmp_path / "out" / "checkpoints" / f"step-{steps:08d}" / "manifest.json").is_file()


@pytest.mark.gloo
def test_torchrun_trains_on_two_ranks_and_a_second_run_finds_it_done(tmp_path: Path) -> None:
    job = {**small_job(tmp_path), "parallel_strategy": {"data_parallel": 2}}
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

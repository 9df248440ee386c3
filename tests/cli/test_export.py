"""`manta export`: which checkpoint, which tokenizer, what is said; and once the whole road to a directory of weights."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from api.cli import connect, export
from api.cli.main import app
from api.client import ApiProblem
from service.views import CheckpointView, JobView, Page
from tests.cli.conftest import T0

MADE = {
    "output": "/there",
    "step": 20,
    "family": "Glm4MoeForCausalLM",
    "parameters": 1_250_000,
    "bytes": 5 * 2**20,
    "dtype": "fp32",
    "notes": ["dropout 0.1 is left out: it only acts in training"],
}


def manta(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["export", *arguments])


class FakeClient:
    """One job and its checkpoints."""

    def __init__(self, job: JobView, kept: Sequence[CheckpointView]) -> None:
        self.job, self.kept = job, kept

    def get(self, job_id: str) -> JobView:
        if job_id != self.job.id:
            raise ApiProblem(404, "job_not_found", f"there is no job {job_id}")
        return self.job

    def list(self, *, name: str | None = None, **_: Any) -> Page[JobView]:
        return Page[JobView](items=[self.job] if name in (None, self.job.name) else [], next_cursor=None)

    def checkpoints(self, job_id: str) -> Sequence[CheckpointView]:
        return self.kept


def run_directory(root: Path, steps: Sequence[int] = (10, 20), data_sets: int = 1) -> Path:
    """What a run leaves, without contents."""
    for step in steps:
        (root / "checkpoints" / f"step-{step:08}").mkdir(parents=True)
        (root / "checkpoints" / f"step-{step:08}" / "manifest.json").touch()
    for i in range(data_sets):
        (root / "prepared" / f"{i}").mkdir(parents=True)
        (root / "prepared" / f"{i}" / "manifest.json").touch()
    (root / "checkpoints" / "step-best").mkdir(parents=True)
    (root / "checkpoints" / "step-best" / "manifest.json").touch()
    (root / "prepared" / "unfinished.partial").mkdir(parents=True)
    (root / "prepared" / "unfinished.partial" / "tokenizer.model").touch()
    return root


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Arguments of each conversion, and the job that it was given."""
    seen: list[list[str]] = []

    def run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        spec = json.loads(Path(arguments[arguments.index("--spec") + 1]).read_text())
        seen.append([*arguments, json.dumps(spec["model"]["hidden_size"])])
        return subprocess.CompletedProcess([], 0, json.dumps(MADE), "")

    monkeypatch.setattr(export, "_run", run)
    return seen


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text("model: {hidden_size: 96}")
    return path


@pytest.fixture
def client(tmp_path: Path, job: Callable[..., JobView], monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    root = run_directory(tmp_path / "job", data_sets=0)
    (root / "prepared.json").write_text(json.dumps({"path": "/data/0f", "hash": "0f"}))
    kept = [
        CheckpointView(
            step=step,
            attempt=1,
            path=str(root / "checkpoints" / f"step-{step:08}"),
            bytes=1,
            state="deleted" if step == 30 else "committed",
            created_at=T0,
        )
        for step in (10, 20, 30)
    ]
    fake = FakeClient(job(state="succeeded"), kept)
    monkeypatch.setattr(connect, "connect", lambda url: fake)
    return fake


@pytest.mark.parametrize(("arguments", "step"), [((), 20), (("--step", "10"), 10)])
def test_a_job_is_exported_with_its_own_spec_and_tokenizer(
    arguments: tuple[str, ...],
    step: int,
    client: FakeClient,
    asked: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = manta("quickstart", "--dtype", "bf16", *arguments)
    assert done.exit_code == 0, done.output
    (command,) = asked
    assert command[0] == str(tmp_path / "job" / "checkpoints" / f"step-{step:08}")
    assert command[command.index("--tokenizer") + 1] == "/data/0f/tokenizer.model"
    assert command[command.index("--output") + 1] == str(tmp_path / f"quickstart-step-{step:08}")
    assert command[command.index("--dtype") + 1] == "bf16"
    assert command[-1] == str(client.job.spec["model"]["hidden_size"])
    assert "/there is step 20: Glm4MoeForCausalLM, 1.25 M parameters in fp32, 5.0 MiB." in done.stdout
    assert "note  dropout 0.1" in done.stdout


def test_as_json_it_says_what_the_conversion_said(client: FakeClient, asked: list[list[str]]) -> None:
    done = manta("quickstart", "-o", "json", "--to", "out")
    assert json.loads(done.stdout) == MADE


@pytest.mark.parametrize("where", [".", "checkpoints/step-00000020"])
def test_a_run_without_a_service_is_named_by_its_directory(
    where: str, asked: list[list[str]], spec_file: Path, tmp_path: Path
) -> None:
    root = run_directory(tmp_path / "bare")
    done = manta(str(root / where), "--spec", str(spec_file), "--to", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    (command,) = asked
    assert command[0] == str(root / "checkpoints" / "step-00000020")
    assert command[command.index("--tokenizer") + 1] == str(root / "prepared" / "0" / "tokenizer.model")
    assert command[-1] == "96"


def test_a_tokenizer_that_cannot_be_found_can_be_given(asked: list[list[str]], spec_file: Path, tmp_path: Path) -> None:
    root = run_directory(tmp_path / "bare", data_sets=2)
    asks = manta(str(root), "--spec", str(spec_file))
    assert (asks.exit_code, len(asked)) == (2, 0)
    assert "2 data sets lie in" in asks.stderr
    assert "--tokenizer" in asks.stderr
    assert manta(str(root), "--spec", str(spec_file), "--tokenizer", "/t.model").exit_code == 0
    assert asked[0][asked[0].index("--tokenizer") + 1] == "/t.model"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["other"], 1, "there is no job 'other'"),
        (["quickstart", "--step", "30"], 1, "quickstart has no checkpoint of step 30; it has 10, 20"),
        (["{bare}"], 2, "give the job file as --spec"),
        (["{bare}", "--step", "7", "--spec", "{spec}"], 1, "has no checkpoint of step 7; it has 10, 20"),
        (["{bare}/checkpoints/step-00000020", "--step", "10", "--spec", "{spec}"], 1, "is a checkpoint itself, not of step 10"),
        (["{empty}", "--spec", "{spec}"], 1, "empty has no checkpoint"),
        (["{bare}", "--spec", "{bare}/no.yaml"], 2, "no.yaml: No such file"),
        (["{bare}", "--spec", "{data}"], 1, "is a job of kind data"),
        (["{bare}", "--spec", "{wrong}"], 2, "/model/hiden_size"),
        (["quickstart", "--format", "gguf"], 2, "gguf"),
    ],
)
def test_what_cannot_be_exported_says_why(
    arguments: list[str], status: int, message: str, client: FakeClient, asked: list[list[str]], spec_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.yaml").write_text("kind: data")
    (tmp_path / "wrong.yaml").write_text("model: {hiden_size: 96}")
    places = {
        "bare": run_directory(tmp_path / "bare"),
        "empty": tmp_path / "empty",
        "spec": spec_file,
        "data": tmp_path / "data.yaml",
        "wrong": tmp_path / "wrong.yaml",
    }
    done = manta(*(argument.format(**places) for argument in arguments))
    assert (done.exit_code, asked) == (status, [])
    assert message in " ".join(done.stderr.split())


def test_a_job_that_trains_nothing_has_nothing_to_export(client: FakeClient) -> None:
    client.job = client.job.model_copy(update={"kind": "data"})
    done = manta("quickstart")
    assert (done.exit_code, "is a job of kind data" in done.stderr) == (1, True)


def test_a_checkpoint_on_another_machine_says_where_to_run(client: FakeClient) -> None:
    client.kept = [client.kept[0].model_copy(update={"path": "/elsewhere/checkpoints/step-00000010"})]
    done = manta("quickstart")
    assert (done.exit_code, "run `manta export` where the job's storage is" in done.stderr) == (1, True)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_job_whose_data_is_not_on_record_asks_for_the_tokenizer(
    content: str | None, client: FakeClient, tmp_path: Path
) -> None:
    (tmp_path / "job" / "prepared.json").unlink()
    if content is not None:
        (tmp_path / "job" / "prepared.json").write_text(content)
    done = manta("quickstart")
    assert (done.exit_code, "give the tokenizer.model" in done.stderr) == (2, True)


def test_what_the_conversion_refuses_is_the_command_s_own_error(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"code": "not_exportable", "status": 422, "detail": "no class computes it", "pointer": "/model/qk_norm"}
    monkeypatch.setattr(export, "_run", lambda arguments: subprocess.CompletedProcess([], 1, json.dumps(said), ""))
    done = manta("quickstart", "-o", "json")
    assert done.exit_code == 2
    problem = json.loads(done.stderr[done.stderr.index("{") :])
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("not_exportable", "/model/qk_norm")


def test_a_conversion_that_dies_ends_with_its_last_words(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_run", lambda arguments: subprocess.CompletedProcess([], -9, "", "one\ntwo: Killed"))
    done = manta("quickstart")
    assert done.exit_code == 1
    assert "ended with status -9" in done.stderr
    assert "two: Killed" in done.stderr


def test_the_whole_road_from_a_run_to_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from safetensors import safe_open

    from data.spec import TokenizerSpec
    from data.tokenizer import Tokenizer, train_tokenizer
    from workers.checkpoint import CheckpointStore
    from workers.hf.rules import rules
    from workers.model.spec import ModelSpec

    model = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "n_routed_experts": 0}
    tokenizer = train_tokenizer(["the old cat"], TokenizerSpec(vocab_size=300))
    vocab_size = Tokenizer(tokenizer).vocab_size
    state = {str(rule.name): torch.ones(rule.shape) for rule in rules(ModelSpec.model_validate(model), vocab_size, "llama")}
    run = tmp_path / "bare"
    store = CheckpointStore(run / "checkpoints", asynchronous=False)
    store.save(3, {"model": state, "cursor": 3})
    store.close()
    (run / "prepared" / "0").mkdir(parents=True)
    (run / "prepared" / "0" / "manifest.json").touch()
    (run / "prepared" / "0" / "tokenizer.model").write_bytes(tokenizer)
    (tmp_path / "job.yaml").write_text(json.dumps({"model": model}))
    # Started beside files that are named as modules are.
    (tmp_path / "json.py").write_text("raise SystemExit('taken for a module')")
    monkeypatch.chdir(tmp_path)
    done = manta(str(run), "--spec", str(tmp_path / "job.yaml"), "--to", str(tmp_path / "out"))
    assert done.exit_code == 0, done.stderr
    assert "is step 3: LlamaForCausalLM" in done.stdout
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.get_tensor("model.layers.0.mlp.up_proj.weight").shape == (512, 32)

"""The commands, by what they print and how they end. The service is a fake client that keeps jobs in a dictionary."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from api.cli import connect
from api.cli.main import app
from api.client import ApiProblem, ServiceUnavailable
from api.errors import FieldProblem
from api.logs import LogLine
from service.spec import JOB_SPEC
from service.states import IllegalTransition
from service.validation import parse_spec
from service.views import CheckpointView, EventView, JobView, MetricView, Page


class FakeService:
    """The client's methods over jobs in memory. ``story`` is what ``get`` answers next, job by job."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobView] = {}
        self.story: list[JobView] = []
        self.submitted: list[tuple[dict[str, Any], str | None]] = []
        self.asked: list[tuple[str, str]] = []
        self.refuse: Exception | None = None
        self.build: Callable[..., JobView]

    def add(self, job: JobView) -> JobView:
        self.jobs[job.id] = job
        return job

    def submit(self, document: dict[str, Any], *, idempotency_key: str | None = None) -> JobView:
        spec = parse_spec(document)
        self.submitted.append((document, idempotency_key))
        return self.add(self.build(id="new0000001", name=spec.name, state="queued"))

    def get(self, job_id: str) -> JobView:
        if self.refuse:
            raise self.refuse
        if self.story:
            self.jobs[job_id] = self.story.pop(0)
        if job_id not in self.jobs:
            raise ApiProblem(404, "job_not_found", f"there is no job {job_id}")
        return self.jobs[job_id]

    def list(self, *, name: str | None = None, cursor: str | None = None, limit: int = 50, **_: Any) -> Page[JobView]:
        newest_first = [job for job in reversed(self.jobs.values()) if name in (None, job.name)]
        begin = int(cursor or 0)
        more = str(begin + limit) if len(newest_first) > begin + limit else None
        return Page[JobView](items=newest_first[begin : begin + limit], next_cursor=more)

    def _act(self, verb: str, job_id: str) -> JobView:
        self.asked.append((verb, job_id))
        if self.refuse:
            raise self.refuse
        return self.jobs[job_id]

    def pause(self, job_id: str) -> JobView:
        return self._act("pause", job_id)

    def resume(self, job_id: str) -> JobView:
        return self._act("resume", job_id)

    def cancel(self, job_id: str) -> JobView:
        return self._act("cancel", job_id)

    def retry(self, job_id: str) -> JobView:
        return self._act("retry", job_id)

    def delete(self, job_id: str) -> None:
        self._act("delete", job_id)

    def attempts(self, job_id: str) -> Sequence[Any]:
        return []

    def workers(self, job_id: str) -> Sequence[Any]:
        return []

    def checkpoints(self, job_id: str) -> Sequence[CheckpointView]:
        return []

    def events(self, job_id: str, **_: Any) -> Page[EventView]:
        return Page[EventView](items=[], next_cursor=None)

    def metrics(self, job_id: str, **_: Any) -> Page[MetricView]:
        return Page[MetricView](items=[], next_cursor=None)

    def stream_logs(self, job_id: str, *, rank: int | None, attempt: int | None, follow: bool) -> Iterator[LogLine]:
        lines = [LogLine(attempt=1, rank=-1, text="prepared"), LogLine(attempt=1, rank=1, text="step 1")]
        yield from (line for line in lines if rank in (None, line.rank))


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, job: Callable[..., JobView]) -> FakeService:
    fake = FakeService()
    fake.build = job
    monkeypatch.setattr(connect, "connect", lambda url: fake)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return fake


def manta(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text("name: tiny\ntraining: {steps: 3}\n")
    return path


def test_submit_names_the_job_and_how_to_follow_it(service: FakeService, spec_file: Path) -> None:
    ended = manta("submit", str(spec_file))
    assert ended.exit_code == 0
    assert "tiny new0000001 is queued. `manta watch tiny` follows it." in ended.stdout


def test_submit_sends_name_and_key(service: FakeService, spec_file: Path) -> None:
    manta("submit", str(spec_file), "--name", "other", "--idempotency-key", "k1")
    (document, key), = service.submitted  # fmt: skip
    assert (document["name"], document["training"], key) == ("other", {"steps": 3}, "k1")


@pytest.mark.parametrize("of", ["path", "lexicon"])
def test_relative_paths_are_seen_from_the_current_directory(
    of: str, service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = ["texts/*.txt", "/data/a.jsonl", "s3://bucket/x.parquet", "stdlib:prose"]
    spec = {"name": "tiny", "data_pipeline": {"sources": [{"path": path} for path in paths]}, "tokenizer": {of: "t.model"}}
    Path("job.json").write_text(json.dumps(spec))
    assert manta("submit", "job.json").exit_code == 0
    document = service.submitted[0][0]
    sent = [source["path"] for source in document["data_pipeline"]["sources"]]
    assert sent == [str(tmp_path / "texts/*.txt"), *paths[1:]]
    assert document["tokenizer"][of] == str(tmp_path / "t.model")


@pytest.mark.parametrize(("state", "status"), [("succeeded", 0), ("failed", 1), ("cancelled", 3)])
@pytest.mark.parametrize("output", ["text", "json"])
def test_a_watched_submit_ends_with_the_job_s_own_status(
    state: str, status: int, output: str, service: FakeService, spec_file: Path, job: Callable[..., JobView]
) -> None:
    service.story = [job(id="new0000001"), job(id="new0000001"), job(id="new0000001", state=state)]
    ended = manta("submit", str(spec_file), "--watch", "-o", output)
    assert ended.exit_code == status
    if output == "json":
        assert [json.loads(line)["job"]["state"] for line in ended.stdout.splitlines()] == ["running", state]


def test_a_failed_job_s_watch_ends_with_what_went_wrong(service: FakeService, job: Callable[..., JobView]) -> None:
    failure = {"code": "source_unreadable", "detail": "no file matches /x/*.txt", "pointer": "/data_pipeline/sources/0/path"}
    service.add(job(id="abc", state="failed", failure=failure))
    ended = manta("watch", "abc")
    assert ended.exit_code == 1
    assert "no file matches /x/*.txt" in ended.stdout
    assert "/data_pipeline/sources/0/path" in ended.stdout


@pytest.mark.parametrize(
    ("kind", "state", "told"), [("data", "succeeded", True), ("data", "failed", False), ("train", "succeeded", False)]
)
def test_the_watch_of_a_data_job_ends_with_how_to_see_its_data(
    kind: str, state: str, told: bool, service: FakeService, job: Callable[..., JobView]
) -> None:
    result = {"path": "/data/0a1b", "hash": "0a1b", "documents": 2048, "rows": 40, "tokens": 12_000}
    service.add(job(id="abc", name="texts", kind=kind, state=state, result=result if kind == "data" and told else None))
    ended = manta("watch", "abc")
    assert ("/data/0a1b" in ended.stdout) == told
    assert ("`manta data report texts` shows" in ended.stderr) == told


def test_ctrl_c_leaves_a_watched_job_alone(service: FakeService, job: Callable[..., JobView], monkeypatch: Any) -> None:
    service.add(job(id="abc"))

    def press(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", press)
    ended = manta("watch", "abc")
    assert ended.exit_code == 130
    assert "goes on" in ended.stderr
    assert service.asked == []


BAD_SPECS = {
    "an unknown key": ("name: tiny\ntraning: {}\n", ["/traning", "training"]),
    "sizes that do not divide": (
        "name: tiny\nmodel: {hidden_size: 100, num_attention_heads: 6}\n",
        ["/model/hidden_size", "divisible"],
    ),
    "no YAML": ("name: [tiny\n", ["line 2"]),
    "no mapping": ("- name\n", ["mapping"]),
    "no name": ("training: {steps: 3}\n", ["/name"]),
}


@pytest.mark.parametrize(("text", "parts"), BAD_SPECS.values(), ids=BAD_SPECS.keys())
def test_a_bad_spec_is_one_screen_and_status_2(text: str, parts: list[str], service: FakeService, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    ended = manta("submit", str(path))
    assert ended.exit_code == 2
    assert ended.stdout == ""
    assert all(part in ended.stderr for part in parts)
    assert ended.stderr.count(parts[0]) == 1, "what is wrong is said once"
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) < 10


def test_a_bad_spec_as_json_is_the_problem_itself(service: FakeService, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: tiny\ntraning: {}\n")
    ended = manta("submit", str(tmp_path / "job.yaml"), "-o", "json")
    problem = json.loads(ended.stderr)
    assert (problem["code"], problem["status"]) == ("spec_invalid", 422)
    assert problem["errors"][0]["pointer"] == "/traning"
    assert problem["errors"][0]["suggestion"] == "training"


def test_a_file_that_is_not_there_is_wrong_usage(service: FakeService, tmp_path: Path) -> None:
    ended = manta("submit", str(tmp_path / "none.yaml"))
    assert ended.exit_code == 2
    assert "none.yaml: No such file or directory" in ended.stderr


ERRORS = [
    (ApiProblem(404, "job_not_found", "there is no job abc"), 1),
    (IllegalTransition("job abc is running; only a paused job can be resumed"), 1),
    (ApiProblem(422, "request_invalid", "no", [FieldProblem(pointer="/x", detail="is odd", suggestion="y")]), 2),
    (ApiProblem(401, "unauthorized", "the bearer token is wrong"), 1),
    (ApiProblem(429, "too_many_jobs", "1000 jobs have not ended"), 1),
    (ServiceUnavailable("Manta at http://x does not answer"), 4),
]


def test_a_service_of_another_version_is_one_screen(
    service: FakeService, job: Callable[..., JobView], monkeypatch: pytest.MonkeyPatch
) -> None:
    service.add(job(id="abc", name="texts"))
    monkeypatch.setattr(service, "get", lambda _: JobView.model_validate({"id": "abc"}))
    ended = manta("watch", "abc")
    assert ended.exit_code == 4
    assert "another version" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("error", "status"), ERRORS, ids=lambda value: getattr(value, "code", None))
def test_what_the_service_refuses_ends_with_its_reason(
    error: Exception, status: int, service: FakeService, job: Callable[..., JobView]
) -> None:
    service.add(job(id="abc"))
    service.refuse = error
    ended = manta("resume", "abc")
    assert ended.exit_code == status
    assert error.args[0] in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("arguments", [["watch"], ["submit"], ["nonsense"], ["list", "--limit", "0"], ["list", "-o", "xml"]])
def test_wrong_usage_ends_with_status_2(arguments: list[str], service: FakeService) -> None:
    assert manta(*arguments).exit_code == 2


@pytest.mark.parametrize("reference", ["aa11111111", "first", "aa"])
def test_a_job_is_found_by_id_by_name_and_by_the_beginning_of_its_id(
    reference: str, service: FakeService, job: Callable[..., JobView]
) -> None:
    service.add(job(id="aa11111111", name="first"))
    service.add(job(id="bb11111111", name="second"))
    assert json.loads(manta("cancel", reference, "-o", "json").stdout)["id"] == "aa11111111"


def test_a_name_means_the_newest_job_that_has_it(service: FakeService, job: Callable[..., JobView]) -> None:
    service.add(job(id="aa11111111"))
    service.add(job(id="bb11111111"))
    manta("pause", "quickstart")
    assert service.asked == [("pause", "bb11111111")]


def test_the_beginning_of_two_ids_is_refused_with_both(service: FakeService, job: Callable[..., JobView]) -> None:
    service.add(job(id="aa11111111"))
    service.add(job(id="aa22222222"))
    ended = manta("delete", "aa")
    assert ended.exit_code == 1
    assert "aa11111111" in ended.stderr
    assert service.asked == []


def test_no_such_job_says_where_to_look(service: FakeService) -> None:
    ended = manta("show", "nothing")
    assert ended.exit_code == 1
    assert "`manta list`" in ended.stderr
    assert manta("show", "../etc").exit_code == 1


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel", "retry", "delete"])
def test_each_verb_reaches_the_service_once(verb: str, service: FakeService, job: Callable[..., JobView]) -> None:
    service.add(job(id="abc"))
    assert manta(verb, "abc").exit_code == 0
    assert service.asked == [(verb, "abc")]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["list"], dict),
        (["show", "abc"], dict),
        (["events", "abc"], list),
        (["checkpoints", "abc"], list),
        (["pause", "abc"], dict),
        (["delete", "abc"], dict),
        (["version"], dict),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_command_speaks_json(arguments: list[str], kind: type, service: FakeService, job: Callable[..., JobView]) -> None:
    service.add(job(id="abc"))
    ended = manta(*arguments, "-o", "json")
    assert ended.exit_code == 0
    assert isinstance(json.loads(ended.stdout), kind)


def test_logs_say_who_wrote_unless_one_was_asked_for(service: FakeService, job: Callable[..., JobView]) -> None:
    service.add(job(id="abc"))
    assert manta("logs", "abc").stdout.splitlines() == ["driver | prepared", "rank 1 | step 1"]
    assert manta("logs", "abc", "--rank", "1").stdout.splitlines() == ["step 1"]
    first = json.loads(manta("logs", "abc", "-o", "json").stdout.splitlines()[0])
    assert first == {"attempt": 1, "rank": -1, "text": "prepared"}


def test_the_list_pages_by_cursor(service: FakeService, job: Callable[..., JobView]) -> None:
    for number in range(3):
        service.add(job(id=f"aa{number}"))
    first = manta("list", "--limit", "2")
    assert "--cursor 2" in first.stderr
    assert json.loads(manta("list", "--limit", "2", "--cursor", "2", "-o", "json").stdout)["items"][0]["id"] == "aa0"


def test_the_help_names_the_exit_statuses() -> None:
    ended = manta("--help")
    assert ended.exit_code == 0
    assert "3 job cancelled" in " ".join(ended.stdout.split())


def test_the_spec_of_the_fake_is_the_real_one(job: Callable[..., JobView]) -> None:
    assert JOB_SPEC.validate_python(job().spec).name == "quickstart"


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("api.cli.main", ["torch", "ray", "fastapi", "sqlalchemy", "pydantic", "httpx"]),
        ("api.cli.main, api.cli.connect, api.cli.watch, api.cli.plan, api.cli.demo_manta, api.cli.machine", ["torch", "ray"]),
    ],
)
def test_start_up_imports_nothing_heavy(modules: str, absent: list[str]) -> None:
    code = f"import sys, {modules}; print([name for name in {absent} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

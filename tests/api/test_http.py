"""Status codes and problem bodies, over real HTTP."""

import json
from typing import Any

import httpx
import pytest

from api.problem import Problem
from api.services import CLUSTER_CHECK_SECONDS, ClusterCheck
from service.views import JobView
from tests.api.conftest import FakeLauncher, Manta, Start

JSON = {"content-type": "application/json"}
YAML = {"content-type": "application/yaml"}


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of a problem, once what every problem has is checked."""
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code), body
    assert body["type"] == f"urn:manta:problem:{code}"
    assert body["title"]
    assert body["detail"]
    return body


def test_submit_answers_201_with_the_resolved_job(shared: Manta) -> None:
    answer = shared.http.post("/jobs", content="name: tiny\ntraining: {steps: 3}\n", headers=YAML)
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert (job["name"], job["kind"], job["state"], job["total_steps"]) == ("tiny", "train", "queued", 3)
    assert job["spec"]["training"]["global_batch_size"] == 32
    assert shared.http.get(answer.headers["location"].removeprefix("/api/v1")).json()["spec"] == job["spec"]


@pytest.mark.parametrize(
    ("body", "headers", "code", "pointer", "words"),
    [
        ("{:", YAML, "spec_unreadable", "", "not YAML"),
        ("{", JSON, "spec_unreadable", "", "not JSON"),
        ("", YAML, "spec_invalid", "", "empty"),
        ("[1]", JSON, "spec_invalid", "", "mapping"),
        ("name: x\nkind: tran\n", YAML, "spec_invalid", "/kind", "unknown kind"),
        ("name: x\nmodel: {hidden_sise: 8}\n", YAML, "spec_invalid", "/model/hidden_sise", "hidden_size"),
        ("name: x\ntraining: {steps: 0}\n", YAML, "spec_invalid", "/training/steps", "greater than"),
        ("training: {steps: 1}\n", YAML, "spec_invalid", "/name", "required"),
    ],
)
def test_a_bad_spec_names_the_field(
    shared: Manta, body: str, headers: dict[str, str], code: str, pointer: str, words: str
) -> None:
    errors = problem(shared.http.post("/jobs", content=body, headers=headers), 422, code)["errors"]
    assert [error["pointer"] for error in errors] == [pointer]
    assert words in errors[0]["detail"]


def test_the_name_that_was_meant_is_suggested(shared: Manta) -> None:
    body = problem(shared.http.post("/jobs", json={"name": "x", "modle": {}}), 422, "spec_invalid")
    assert body["errors"][0]["suggestion"] == "model"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/jobs/nosuchjob0", 404, "job_not_found"),
        ("GET", "/jobs/NO%00such", 404, "job_not_found"),
        ("DELETE", "/jobs/nosuchjob0", 404, "job_not_found"),
        ("POST", "/jobs/nosuchjob0:cancel", 404, "job_not_found"),
        ("POST", "/jobs/nosuchjob0:pause", 404, "job_not_found"),
        ("POST", "/jobs/nosuchjob0:resume", 404, "job_not_found"),
        ("POST", "/jobs/nosuchjob0:retry", 404, "job_not_found"),
        ("GET", "/jobs/nosuchjob0/attempts", 404, "job_not_found"),
        ("GET", "/jobs/nosuchjob0/workers", 404, "job_not_found"),
        ("GET", "/jobs/nosuchjob0/checkpoints", 404, "job_not_found"),
        ("GET", "/jobs/nosuchjob0/events", 404, "job_not_found"),
        ("GET", "/jobs/nosuchjob0/metrics", 404, "job_not_found"),
        ("GET", "/jobs/nosuchjob0/stream", 404, "job_not_found"),
        ("GET", "/jobs/nosuchjob0/events/stream", 404, "job_not_found"),
        ("GET", "/jobs/nosuchjob0/metrics/stream", 404, "job_not_found"),
        ("GET", "/jobs/nosuchjob0/logs", 404, "job_not_found"),
        ("GET", "/nothing", 404, "not_found"),
        ("PUT", "/jobs", 405, "method_not_allowed"),
        ("GET", "/jobs?state=sleeping", 422, "request_invalid"),
        ("GET", "/jobs?limit=0", 422, "request_invalid"),
        ("GET", "/jobs?cursor=abc", 422, "invalid_cursor"),
    ],
)
def test_errors_mean_what_they_say(shared: Manta, method: str, path: str, status: int, code: str) -> None:
    problem(shared.http.request(method, path), status, code)


def test_a_wrong_parameter_is_named(shared: Manta) -> None:
    body = problem(shared.http.get("/jobs?limit=many"), 422, "request_invalid")
    assert [error["parameter"] for error in body["errors"]] == ["limit"]


@pytest.mark.parametrize("last_id", ["x", "-1", "1e3", "99999999999999999999", "٣"])
def test_a_foreign_last_event_id_is_refused(shared: Manta, last_id: str) -> None:
    job = shared.job()
    for path in ("events/stream", "metrics/stream"):
        answer = shared.http.get(f"/jobs/{job.id}/{path}", headers={"Last-Event-ID": last_id.encode()})  # type: ignore[dict-item]
        problem(answer, 422, "invalid_position")
    problem(shared.http.get(f"/jobs/{job.id}/logs", headers={"Last-Event-ID": "1;0"}), 422, "invalid_position")


def test_what_a_state_does_not_allow_is_409(shared: Manta) -> None:
    job = shared.job()
    problem(shared.http.post(f"/jobs/{job.id}:resume"), 409, "illegal_transition")
    problem(shared.http.delete(f"/jobs/{job.id}"), 409, "illegal_transition")
    assert shared.http.post(f"/jobs/{job.id}:pause").json()["state"] == "paused"
    assert shared.http.post(f"/jobs/{job.id}:resume").json()["state"] == "queued"
    assert shared.http.post(f"/jobs/{job.id}:cancel").json()["state"] == "cancelled"
    assert shared.http.post(f"/jobs/{job.id}:cancel").json()["state"] == "cancelled"
    assert shared.http.post(f"/jobs/{job.id}:retry").json()["state"] == "queued"
    shared.http.post(f"/jobs/{job.id}:cancel")
    assert shared.http.delete(f"/jobs/{job.id}").status_code == 204
    problem(shared.http.get(f"/jobs/{job.id}"), 404, "job_not_found")


def test_an_idempotency_key_makes_one_job(manta: Manta) -> None:
    headers = {"Idempotency-Key": "k-1"}
    first = manta.http.post("/jobs", json={"name": "x"}, headers=headers)
    again = manta.http.post("/jobs", content="name: x\n", headers={**headers, **YAML})
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    problem(manta.http.post("/jobs", json={"name": "y"}, headers=headers), 409, "idempotency_conflict")
    assert len(manta.client.list().items) == 1
    problem(manta.http.post("/jobs", json={"name": "y"}, headers={"Idempotency-Key": "a b"}), 422, "request_invalid")


def test_too_many_jobs_is_429_and_says_when_to_come_back(start: Start) -> None:
    manta = start(max_unfinished_jobs=1)
    manta.job()
    answer = manta.http.post("/jobs", json={"name": "x"})
    problem(answer, 429, "too_many_jobs")
    assert int(answer.headers["retry-after"]) > 0


def test_a_body_beyond_the_limit_is_413_with_or_without_its_length(start: Start) -> None:
    manta = start(max_body_bytes=2048)
    problem(manta.http.post("/jobs", content=b" " * 5000), 413, "body_too_large")
    problem(manta.http.post("/jobs", content=iter([b" " * 1500] * 4)), 413, "body_too_large")


def test_pages_go_through_all_jobs_newest_first(manta: Manta) -> None:
    ids = [manta.job(name=f"j{n}").id for n in range(5)]
    first = manta.client.list(limit=2)
    second = manta.client.list(limit=2, cursor=first.next_cursor)
    third = manta.client.list(limit=2, cursor=second.next_cursor)
    assert [job.id for page in (first, second, third) for job in page.items] == ids[::-1]
    assert third.next_cursor is None


def test_jobs_are_filtered(manta: Manta) -> None:
    one, two = manta.job(name="one"), manta.job(name="two", kind="data")
    manta.client.cancel(two.id)
    assert [job.name for job in manta.client.list(state="queued").items] == ["one"]
    assert [job.name for job in manta.client.list(kind="data").items] == ["two"]
    assert [job.id for job in manta.client.list(name="one").items] == [one.id]
    assert {job.name for job in manta.client.list(state=["queued", "cancelled"]).items} == {"one", "two"}


def test_a_bug_answers_500_and_tells_nothing(manta: Manta, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ZeroDivisionError("the secret is 42")

    monkeypatch.setattr(manta.services.jobs, "get", fail)
    body = problem(manta.http.get("/jobs/abc"), 500, "internal_error")
    assert "42" not in json.dumps(body)


# -- who may ask -----------------------------------------------------------------------------------------------------------

TOKEN = "a-token-of-some-length"


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}])
def test_every_route_asks_for_the_token(start: Start, header: dict[str, str]) -> None:
    manta = start(token=TOKEN)
    for path in ("/jobs", "/jobs/x", "/jobs/x/logs", "/jobs/x/metrics/stream"):
        problem(manta.http.get(path, headers=header), 401, "unauthorized")
    problem(manta.http.post("/jobs", json={"name": "x"}, headers=header), 401, "unauthorized")
    if "Bearer" not in header.get("Authorization", ""):
        problem(manta.http.put("/jobs/x/attempts/1/children/0", json={}, headers=header), 401, "unauthorized")
    refused = httpx.get(f"{manta.url}/metrics", headers=header)
    problem(refused, 401, "unauthorized")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{manta.url}/healthz").status_code == 200
    assert manta.http.get("/jobs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:80"}, 200),
        ({"Origin": "http://127.0.0.1:3000"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "["}, 403),
        ({"Origin": "http://["}, 403),
    ],
)
def test_without_a_token_pages_of_other_sites_are_refused(shared: Manta, headers: dict[str, str], status: int) -> None:
    answer = shared.http.get("/jobs", headers=headers)
    assert answer.status_code == status
    if status == 403:
        problem(answer, 403, "foreign_origin")


# -- the service itself ----------------------------------------------------------------------------------------------------


def test_readyz_says_what_is_missing(start: Start) -> None:
    manta = start()
    answer = httpx.get(f"{manta.url}/readyz")
    assert answer.status_code == 503
    assert answer.json() == {
        "ready": False,
        "checks": {"store": "ok", "supervisor": "ok", "cluster": "no cluster in this test"},
    }


def test_readyz_tells_who_has_no_token_only_whether(start: Start) -> None:
    manta = start(token=TOKEN)
    bare = httpx.get(f"{manta.url}/readyz")
    assert (bare.status_code, bare.json()["ready"], bare.json()["checks"]["store"]) == (503, False, "ok")
    assert "no cluster" not in bare.text
    assert "no cluster" in httpx.get(f"{manta.url}/readyz", headers={"Authorization": f"Bearer {TOKEN}"}).text


def test_the_cluster_is_asked_once_a_second_however_often_readiness_is() -> None:
    launcher, now = FakeLauncher(), [0.0]
    check = ClusterCheck(launcher, None, clock=lambda: now[0])
    assert check() == "no cluster in this test"
    launcher.cpus = 4
    assert check() != "ok"
    now[0] = CLUSTER_CHECK_SECONDS
    assert check() == "ok"


def test_a_method_that_nobody_knows_is_no_series_of_its_own(manta: Manta) -> None:
    manta.http.request("BREW", "/jobs")
    text = httpx.get(f"{manta.url}/metrics").text
    assert 'method="other"' in text
    assert "BREW" not in text


def test_the_supervisor_pauses_as_long_as_the_settings_say(start: Start) -> None:
    assert start(tick_seconds=7.0).services.supervision._settings.idle_seconds == 7.0


def test_prometheus_counts_jobs_requests_and_the_supervisor(manta: Manta) -> None:
    job = manta.job()
    manta.client.cancel(job.id)
    text = httpx.get(f"{manta.url}/metrics").text
    assert 'manta_jobs{state="cancelled"} 1.0' in text
    assert "manta_supervisor_up 1.0" in text
    assert "manta_supervisor_age_seconds" in text
    assert 'manta_http_requests_total{method="POST",route="/api/v1/jobs/{job_id}:cancel",status="200"} 1.0' in text


def test_openapi_has_the_spec_examples_and_stable_ids(shared: Manta) -> None:
    document = shared.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert {"JobSpec", "TrainJob", "DataJob", "Problem", "FieldProblem", "JobView"} <= schemas.keys()
    submit = document["paths"]["/api/v1/jobs"]["post"]
    assert submit["operationId"] == "submitJob"
    assert set(submit["requestBody"]["content"]) == {"application/json", "application/yaml"}
    references = {line.split('"')[1] for line in json.dumps(document).split('"$ref": ')[1:]}
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= schemas.keys()
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


def test_openapi_shows_what_answers_look_like(shared: Manta) -> None:
    document = shared.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    (example,) = schemas["JobView"]["examples"]
    assert JobView.model_validate(example).name == "quickstart"
    assert example.keys() == JobView.model_fields.keys()
    (refusal,) = schemas["Problem"]["examples"]
    assert Problem.model_validate(refusal).model_dump(exclude_none=True) == refusal
    assert refusal["errors"][0]["suggestion"] == "model"
    replay = document["paths"]["/api/v1/jobs"]["post"]["responses"]["200"]
    assert replay["headers"].keys() == {"Location", "Idempotency-Replayed"}
    assert replay["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/JobView"}


@pytest.mark.parametrize("kind", ["application/yaml", "application/json"])
def test_the_examples_of_openapi_are_accepted(shared: Manta, kind: str) -> None:
    content = shared.http.get("/openapi.json").json()["paths"]["/api/v1/jobs"]["post"]["requestBody"]["content"]
    for example in content[kind]["examples"].values():
        body = example["value"] if isinstance(example["value"], str) else json.dumps(example["value"])
        assert shared.http.post("/jobs", content=body, headers={"content-type": kind}).status_code == 201


def test_a_plan_is_made_without_a_job(manta: Manta) -> None:
    plan = manta.client.plan({"name": "x", "training": {"steps": 7}})
    assert (plan["steps"], plan["spec"]["training"]["steps"]) == (7, 7)
    assert plan["parameters"]["total"] >= plan["parameters"]["active"] > 0
    assert manta.client.plan("name: y\nkind: data\n")["spec"]["kind"] == "data"
    problem(manta.http.post("/plan", json={"name": "x", "trainin": {}}), 422, "spec_invalid")
    assert manta.client.list().items == []

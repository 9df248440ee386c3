"""What the launcher makes of the job API's answers."""

from typing import Any

import httpx
import pytest

from api.launcher import Endpoint, RayLauncher
from service.launcher import LauncherUnavailable, LaunchStatus


def launcher(*answers: httpx.Response | Exception) -> RayLauncher:
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer t"
        step = left.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    return RayLauncher(lambda: Endpoint("http://head:8265/", "t"), transport=httpx.MockTransport(answer))


def ray_job(status: str, message: str | None = None) -> httpx.Response:
    return httpx.Response(200, json={"status": status, "message": message})


TRACEBACK = "Traceback (most recent call last):\n  ...\nValueError: Job with submission_id a already exists."


@pytest.mark.parametrize(
    ("status", "state"),
    [("PENDING", "pending"), ("RUNNING", "running"), ("SUCCEEDED", "succeeded"), ("FAILED", "failed"), ("STOPPED", "stopped")],
)
def test_states(status: str, state: Any) -> None:
    assert launcher(ray_job(status, "why")).status("a") == LaunchStatus(state, "why")


def test_what_the_cluster_does_not_know() -> None:
    gone = httpx.Response(404, text="Job a does not exist")
    assert launcher(gone).status("a").state == "unknown"
    assert launcher(gone).logs("a") == ""
    launcher(gone).stop("a")


def test_a_second_submit_of_an_id_is_no_error() -> None:
    launcher(httpx.Response(200, json={}), httpx.Response(500, text=TRACEBACK), ray_job("RUNNING")).submit("a", "true", {})
    launcher(httpx.Response(500, text=TRACEBACK), ray_job("RUNNING")).submit("a", "true", {})


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([httpx.ConnectError("refused")], "refused"),
        ([httpx.ReadTimeout("")], "ReadTimeout"),
        ([httpx.Response(401)], "token"),
        ([httpx.Response(403)], "token"),
        ([httpx.Response(500, text=TRACEBACK), httpx.Response(404)], "already exists"),
        ([httpx.Response(500, text="No available agent"), httpx.ConnectError("gone")], "gone"),
    ],
)
def test_trouble_is_unavailability_and_never_a_failed_job(answers: list[Any], words: str) -> None:
    with pytest.raises(LauncherUnavailable, match=words):
        launcher(*answers).submit("a", "true", {})


def test_what_is_no_dashboard_is_named() -> None:
    with pytest.raises(LauncherUnavailable, match="not a Ray dashboard"):
        launcher(httpx.Response(200, text="<html>")).status("a")


def test_capacity_counts_nodes_that_are_alive() -> None:
    nodes = [
        {"state": "ALIVE", "resources_total": {"CPU": 4.0, "GPU": 1.0}},
        {"state": "ALIVE", "resources_total": {"CPU": 2.0}},
        {"state": "DEAD", "resources_total": {"CPU": 64.0}},
    ]
    body = {"data": {"result": {"result": nodes}}}
    capacity = launcher(httpx.Response(200, json=body)).capacity()
    assert (capacity.cpus, capacity.gpus) == (6.0, 1.0)


def test_a_cluster_that_is_starting_is_unavailable() -> None:
    with pytest.raises(LauncherUnavailable, match="starting"):
        RayLauncher(lambda: None).capacity()

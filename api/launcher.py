"""``service.launcher.Launcher`` over Ray's documented job REST API.

Plain HTTP in place of ``JobSubmissionClient``: importing Ray would cost the service seconds and
150 MB, for nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from service.launcher import Capacity, LauncherUnavailable, LaunchState, LaunchStatus

_STATES: dict[str, LaunchState] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}


@dataclass(frozen=True)
class Endpoint:
    """A cluster's dashboard and the bearer token that it asks for, if any."""

    url: str
    token: str | None


class RayLauncher:
    """Submits to the cluster that ``endpoint`` names at the moment of each call; None means that there is none yet."""

    def __init__(self, endpoint: Callable[[], Endpoint | None], *, transport: httpx.BaseTransport | None = None) -> None:
        self._endpoint = endpoint
        # A submit waits for the head node's agent; anything else answers at once or not at all. Proxies are for the internet.
        self._http = httpx.Client(timeout=httpx.Timeout(30.0, connect=3.0), transport=transport, trust_env=False)

    def submit(self, submission_id: str, entrypoint: str, env: Mapping[str, str]) -> None:
        body: dict[str, Any] = {"submission_id": submission_id, "entrypoint": entrypoint}
        if env:
            body["runtime_env"] = {"env_vars": dict(env)}
        answer = self._request("POST", "/api/jobs/", json=body)
        if answer.is_success:
            return
        # Ray refuses an id that it has with a plain 500 or 400. Asking for the id tells that from any other trouble.
        if self.status(submission_id).state == "unknown":
            raise LauncherUnavailable(f"the cluster refused {submission_id}: {_last_line(answer)}")

    def status(self, submission_id: str) -> LaunchStatus:
        answer = self._request("GET", f"/api/jobs/{submission_id}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return LaunchStatus("unknown")
        body = _json(answer)
        return LaunchStatus(_STATES[body["status"]], body.get("message") or "")

    def stop(self, submission_id: str) -> None:
        answer = self._request("POST", f"/api/jobs/{submission_id}/stop")
        if answer.status_code != httpx.codes.NOT_FOUND:
            _json(answer)

    def logs(self, submission_id: str) -> str:
        answer = self._request("GET", f"/api/jobs/{submission_id}/logs")
        return "" if answer.status_code == httpx.codes.NOT_FOUND else str(_json(answer)["logs"])

    def capacity(self) -> Capacity:
        nodes = _json(self._request("GET", "/api/v0/nodes"))["data"]["result"]["result"]
        alive = [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]
        if not alive:
            raise LauncherUnavailable("the cluster has no node that is alive yet")
        return Capacity(cpus=sum(node.get("CPU", 0.0) for node in alive), gpus=sum(node.get("GPU", 0.0) for node in alive))

    def close(self) -> None:
        self._http.close()

    def _request(self, method: str, path: str, *, json: object = None) -> httpx.Response:
        endpoint = self._endpoint()
        if endpoint is None:
            raise LauncherUnavailable("the local Ray cluster is starting")
        headers = {} if endpoint.token is None else {"Authorization": f"Bearer {endpoint.token}"}
        try:
            answer = self._http.request(method, endpoint.url.rstrip("/") + path, json=json, headers=headers)
        except httpx.TransportError as error:
            raise LauncherUnavailable(
                f"the cluster at {endpoint.url} does not answer: {str(error) or type(error).__name__}"
            ) from error
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise LauncherUnavailable(f"the cluster at {endpoint.url} refused the token (MANTA_RAY_TOKEN)")
        return answer


def _json(answer: httpx.Response) -> Any:
    if not answer.is_success:
        raise LauncherUnavailable(f"the cluster answered {answer.status_code}: {_last_line(answer)}")
    try:
        return answer.json()
    except ValueError as error:
        raise LauncherUnavailable(f"what answers at {answer.request.url} is not a Ray dashboard") from error


def _last_line(answer: httpx.Response) -> str:
    """Ray answers errors with a traceback; its last line says what is wrong."""
    lines = [line.strip() for line in answer.text.splitlines() if line.strip(" .\n")]
    return lines[-1] if lines else answer.reason_phrase

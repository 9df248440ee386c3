"""A local cluster is started, adopted by another process's object, and ended without a leftover."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from api.cluster import ClusterFailed, ClusterRecord, LocalCluster
from api.launcher import Endpoint, RayLauncher
from api.settings import Settings
from service.launcher import TERMINAL, LauncherUnavailable, LaunchStatus

pytestmark = pytest.mark.cluster


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", num_cpus=2)


@pytest.fixture
def cluster(settings: Settings) -> Iterator[LocalCluster]:
    cluster = LocalCluster(settings)
    yield cluster
    cluster.stop()


def _await_end(launcher: RayLauncher, submission_id: str) -> LaunchStatus:
    while (status := launcher.status(submission_id)).state not in TERMINAL:
        time.sleep(0.1)
    return status


def _await_line(launcher: RayLauncher, submission_id: str, line: str) -> None:
    while line not in launcher.logs(submission_id):
        assert launcher.status(submission_id).state not in TERMINAL, launcher.logs(submission_id)
        time.sleep(0.1)


def test_start_submit_adopt_stop(settings: Settings, cluster: LocalCluster) -> None:
    record = cluster.ensure()
    launcher = RayLauncher(lambda: Endpoint(record.dashboard_url, cluster.token()))

    # the token is needed, and is its user's alone
    with pytest.raises(LauncherUnavailable, match="refused the token"):
        RayLauncher(lambda: Endpoint(record.dashboard_url, "wrong")).capacity()
    assert cluster.token_file.stat().st_mode & 0o777 == 0o600

    # at least four logical CPUs, whatever was asked for
    while True:
        try:
            assert launcher.capacity().cpus == 4
            break
        except LauncherUnavailable:
            time.sleep(0.1)

    # a driver finds the packages and its variables, and a second submit of its id changes nothing
    shown = '"seen", *map(os.environ.get, ("X", "RAY_ADDRESS", "MALLOC_ARENA_MAX"))'
    command = f"{sys.executable} -c 'import os, workers.spec; print({shown})'"
    launcher.submit("manta-a-1", command, {"X": "42"})
    launcher.submit("manta-a-1", command, {"X": "43"})
    assert _await_end(launcher, "manta-a-1").state == "succeeded"
    address, arenas = launcher.logs("manta-a-1").split("seen 42 ")[1].split()
    assert (address.rpartition(":")[2], arenas) == (str(record.gcs_port), "1")

    # failure, and what was never submitted
    launcher.submit("manta-b-1", f"{sys.executable} -c 'raise SystemExit(\"so it goes\")'", {})
    failed = _await_end(launcher, "manta-b-1")
    assert (failed.state, "so it goes" in failed.message) == ("failed", True)
    assert launcher.status("manta-x-1").state == "unknown"
    assert launcher.logs("manta-x-1") == ""
    launcher.stop("manta-x-1")

    # stop is a SIGTERM that the driver sees
    graceful = (
        'import signal, sys, time; signal.signal(15, lambda *_: (print(chr(98) + "ye"), sys.exit()));'
        ' print("up", flush=True); time.sleep(600)'
    )
    launcher.submit("manta-c-1", f"{sys.executable} -c '{graceful}'", {})
    _await_line(launcher, "manta-c-1", "\nup")
    launcher.stop("manta-c-1")
    assert _await_end(launcher, "manta-c-1").state == "stopped"
    assert "\nbye" in launcher.logs("manta-c-1")

    # another service of the same home adopts it
    second = LocalCluster(settings)
    assert second.ensure() == record

    # stop ends everything, a running driver and its child in a session of their own too
    nested = (
        'import subprocess, time; subprocess.Popen(["sleep", "600"], start_new_session=True);'
        ' print("up", flush=True); time.sleep(600)'
    )
    launcher.submit("manta-d-1", f"{sys.executable} -c '{nested}'", {})
    _await_line(launcher, "manta-d-1", "\nup")
    before = second.processes()
    assert any(process.name() == "sleep" for process in before)
    second.stop()
    assert [process for process in before if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert not settings.runtime_dir.exists()
    assert not cluster.alive()
    with pytest.raises(LauncherUnavailable, match="does not answer"):
        launcher.status("manta-a-1")


def test_a_failed_start_shows_the_log_and_leaves_nothing(
    settings: Settings, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        LocalCluster, "_command", lambda *_: [sys.executable, "-m", "ray.scripts.scripts", "start", "--no-such"]
    )
    with pytest.raises(ClusterFailed, match=r"No such option") as caught:
        cluster.ensure()
    assert str(settings.logs_dir / "cluster.log") in caught.value.detail
    cluster.stop()
    assert cluster.processes() == []


def test_a_recycled_pid_is_never_touched(settings: Settings, cluster: LocalCluster) -> None:
    settings.make_home()
    started = psutil.Process().create_time() - 1000
    record = ClusterRecord(id="x", pid=os.getpid(), started=started, dashboard_url="http://127.0.0.1:1", gcs_port=1)
    (settings.home / "cluster.json").write_text(record.model_dump_json())
    assert not cluster.alive()
    assert cluster.processes() == []

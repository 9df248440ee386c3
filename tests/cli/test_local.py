"""Starting and stopping the service of this machine, with small programs in its place."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from api.cli import local
from api.cli.main import app
from api.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(home=tmp_path / "home")
    made.make_home()
    return made


@pytest.fixture
def spawned() -> Iterator[list["subprocess.Popen[bytes]"]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def write_record(settings: Settings, pid: int, older: float = 0.0) -> None:
    started = psutil.Process(pid).create_time() - older
    settings.service_file.write_text(json.dumps({"pid": pid, "started": started, "url": "http://127.0.0.1:9"}))


def service_like(spawned: list["subprocess.Popen[bytes]"]) -> "subprocess.Popen[bytes]":
    """A process whose command line names the service's module."""
    code = "import signal; print('up', flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", code, local.SERVICE_MODULE], stdout=subprocess.PIPE)
    spawned.append(process)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_record_counts_only_while_its_process_is_a_service(
    settings: Settings, spawned: list["subprocess.Popen[bytes]"]
) -> None:
    assert local.recorded(settings) is None
    write_record(settings, os.getpid())  # alive, but another program: the number was given out again
    assert local.recorded(settings) is None
    process = service_like(spawned)
    write_record(settings, process.pid)
    assert local.recorded(settings) == local.Service(process.pid, "http://127.0.0.1:9")
    write_record(settings, process.pid, older=3600.0)  # a service too, but not the one on record
    assert local.recorded(settings) is None
    write_record(settings, process.pid)
    process.kill()
    process.wait()
    assert local.recorded(settings) is None
    settings.service_file.write_text("{")
    assert local.recorded(settings) is None


def test_a_service_that_ends_while_it_starts_is_reported_with_the_end_of_its_log(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "command", lambda: [sys.executable, "-c", "print('port is taken'); raise SystemExit(2)"])
    process = local.launch(settings, os.environ)
    process.wait()
    with pytest.raises(local.StartFailed, match=r"(?s)status 2.*port is taken"):
        local.wait_ready(process, settings)


def test_a_service_is_ready_when_it_is_on_record_and_answers(
    settings: Settings, spawned: list["subprocess.Popen[bytes]"]
) -> None:
    process = service_like(spawned)
    looks: list[str] = []

    def look(seconds: float) -> None:
        write_record(settings, process.pid)

    def ready(url: str) -> bool:
        looks.append(url)
        return len(looks) == 2

    found = local.wait_ready(process, settings, pause=look, ready=ready)
    assert found.pid == process.pid
    assert looks == ["http://127.0.0.1:9"] * 2


def test_a_service_that_never_gets_ready_is_given_up(settings: Settings, spawned: list["subprocess.Popen[bytes]"]) -> None:
    process = service_like(spawned)
    times = iter([0.0, 1.0, local.READY_SECONDS + 1])
    with pytest.raises(local.StartFailed, match="did not get ready"):
        local.wait_ready(process, settings, clock=lambda: next(times), pause=lambda seconds: None, ready=lambda url: False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, local.StartFailed("no")])
def test_a_start_that_is_broken_off_leaves_nothing_behind(
    error: BaseException, settings: Settings, monkeypatch: pytest.MonkeyPatch, spawned: list["subprocess.Popen[bytes]"]
) -> None:
    def broken_off(process: "subprocess.Popen[bytes]", settings: Settings) -> local.Service:
        spawned.append(process)
        raise error

    monkeypatch.setattr(local, "command", lambda: [sys.executable, "-c", "import signal; signal.pause()"])
    monkeypatch.setattr(local, "wait_ready", broken_off)
    with pytest.raises((KeyboardInterrupt, local.StartFailed)):
        local.start(settings)
    assert not local.psutil.pid_exists(spawned[0].pid)


def test_a_start_waits_for_a_service_that_still_starts_and_leaves_it_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, spawned: list["subprocess.Popen[bytes]"]
) -> None:
    monkeypatch.setenv("MANTA_HOME", str(settings.home))
    other = service_like(spawned)  # not on record yet
    assert local.services(settings) == [other.pid]
    waited: list[object] = []

    def in_vain(process: object, settings: Settings) -> local.Service:
        waited.append(process)
        raise local.StartFailed("no")

    monkeypatch.setattr(local, "wait_ready", in_vain)
    with pytest.raises(local.StartFailed):
        local.start(settings)
    assert waited == [None]
    assert other.poll() is None
    assert local.stop(settings, keep_cluster=False) == {"service": True, "cluster": False}
    assert not psutil.pid_exists(other.pid)


def test_a_failed_start_ends_its_own_process_and_no_other_service(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, spawned: list["subprocess.Popen[bytes]"]
) -> None:
    monkeypatch.setenv("MANTA_HOME", str(settings.home))
    stopped: list[bool] = []
    monkeypatch.setattr("api.cluster.LocalCluster.stop", lambda self: stopped.append(True))
    monkeypatch.setattr(local, "command", lambda: [sys.executable, "-c", "import signal; signal.pause()"])

    def overtaken(process: "subprocess.Popen[bytes]", settings: Settings) -> local.Service:
        spawned.append(process)
        service_like(spawned)
        raise local.StartFailed("no")

    monkeypatch.setattr(local, "wait_ready", overtaken)
    with pytest.raises(local.StartFailed):
        local.start(settings)
    mine, other = spawned
    assert not psutil.pid_exists(mine.pid)
    assert other.poll() is None
    assert stopped == []  # the other's cluster


def test_folders_of_the_users_directory_are_not_taken_for_mantas_own(settings: Settings, tmp_path: Path) -> None:
    for name in ("api", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not this one')")
    broken = {**os.environ, "MANTA_HOME": str(settings.home), "MANTA_PORT": "many"}
    ended = subprocess.run(local.command(), cwd=tmp_path, env=broken, capture_output=True, text=True, timeout=60, check=False)
    assert "settings_invalid: MANTA_PORT" in ended.stderr


def test_stopping_asks_first_and_forces_what_does_not_listen(
    spawned: list["subprocess.Popen[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "STOP_SECONDS", 0.5)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    spawned.append(process)
    assert process.stdout is not None
    process.stdout.readline()
    local.stop_process(process.pid)
    assert not local.psutil.pid_exists(process.pid) or local.psutil.Process(process.pid).status() == "zombie"
    local.stop_process(process.pid)  # gone already: no error


def test_a_sweep_ends_what_carries_the_mark_and_its_children_and_nothing_else(
    spawned: list["subprocess.Popen[bytes]"],
) -> None:
    # The child says itself that it runs: between fork and the end of exec a process has no environment to read.
    child_code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child_code!r}])"
    marked = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, env={**os.environ, "A_MARK": "mine"})
    other = service_like(spawned)
    spawned.append(marked)
    assert marked.stdout is not None
    child = int(marked.stdout.readline())
    assert {process.pid for process in local.marked("A_MARK", "mine")} == {marked.pid, child}
    assert local.sweep("A_MARK", "mine") == 2
    assert not any(local.psutil.pid_exists(pid) for pid in (marked.pid, child))
    assert other.poll() is None
    assert local.sweep("A_MARK", "mine") == 0


def test_down_with_nothing_to_stop_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTA_HOME", str(tmp_path / "home"))
    ended = CliRunner().invoke(app, ["down", "-o", "json"])
    assert ended.exit_code == 0
    assert json.loads(ended.stdout) == {"service": False, "cluster": False}


def test_a_second_foreground_start_is_refused(
    settings: Settings, spawned: list["subprocess.Popen[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = service_like(spawned)
    write_record(settings, process.pid)
    monkeypatch.setattr(local, "answers", lambda url: True)
    monkeypatch.setenv("MANTA_HOME", str(settings.home))
    ended = CliRunner().invoke(app, ["up", "--foreground"])
    assert ended.exit_code == 1
    assert "manta down" in ended.stderr
    assert json.loads(CliRunner().invoke(app, ["up", "-o", "json"]).stdout)["started"] is False


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTA_PORT", "many")
    ended = CliRunner().invoke(app, ["up"])
    assert ended.exit_code == 1
    assert "MANTA_PORT" in ended.stderr

"""Ctrl-C of the demo, at any moment, leaves no process behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from api.client import Client, ServiceUnavailable
from api.cluster import LocalCluster
from api.settings import Settings
from data.errors import MantaError
from tests.road.conftest import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def _starting(settings: Settings) -> bool:
    return LocalCluster(settings).record() is not None


def _at_work(settings: Settings) -> bool:
    try:
        with Client.discover(settings) as client:
            return any(job.progress for job in client.list().items)
    except (ServiceUnavailable, MantaError):
        return False


@pytest.mark.parametrize("moment", [_starting, _at_work], ids=["while it starts", "while the job runs"])
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, moment: object) -> None:
    settings = Settings(home=tmp_path / "home")
    demo = subprocess.Popen(
        [sys.executable, "-m", "api.cli.main", "demo", "--home", str(settings.home)],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert callable(moment)
    until(lambda: demo.poll() is not None or moment(settings), "the moment")
    assert demo.poll() is None, "the demo ended before the moment came"
    record = LocalCluster(settings).record()
    assert record is not None
    os.killpg(demo.pid, signal.SIGINT)  # a terminal sends it to the whole foreground group
    assert demo.wait(timeout=120) == 130
    assert _processes_of(record.pid, settings.home) == []


def _processes_of(session: int, home: Path) -> list[str]:
    """Whatever is in the cluster's session, or names the demo's home or was started for it."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            mine = os.getsid(process.pid) == session or str(home) in line
            if process.pid != os.getpid() and mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(line)
        except (psutil.Error, ProcessLookupError):
            continue
    return found

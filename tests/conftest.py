"""What the whole suite shares: one Ray cluster a session, started the way the product starts it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.cluster import LocalCluster
from api.settings import Settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two xdist workers on two cores
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")
# Ray reads these once, as it is loaded, which some test module does while it is collected.
HOME = Path(tempfile.mkdtemp(prefix="manta-tests-")) / "home"
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(HOME / "ray.token")}


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def local_cluster() -> Iterator[LocalCluster]:
    """A running local cluster with a home of its own."""
    cluster = LocalCluster(Settings(home=HOME))
    cluster.ensure()
    yield cluster
    cluster.stop()
    assert not cluster.processes()


@pytest.fixture(scope="session")
def ray_cluster(local_cluster: LocalCluster) -> Iterator[None]:
    """This process as a driver on the session's cluster."""
    record = local_cluster.record()
    assert record is not None
    import ray

    ray.init(address=f"127.0.0.1:{record.gcs_port}", log_to_driver=False, logging_level="warning")
    yield
    ray.shutdown()

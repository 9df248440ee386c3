"""What the whole suite shares: one Ray cluster a session, started the way the product starts it."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two xdist workers on two cores
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")


@pytest.fixture(scope="session")
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["LocalCluster"]:
    """A running local cluster with a home of its own."""
    cluster = LocalCluster(Settings(home=tmp_path_factory.mktemp("cluster") / "home"))
    cluster.ensure()
    yield cluster
    cluster.stop()
    assert not cluster.processes()


@pytest.fixture(scope="session")
def ray_cluster(local_cluster: "LocalCluster") -> Iterator[None]:
    """This process as a driver on the session's cluster."""
    record = local_cluster.record()
    assert record is not None
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(local_cluster.token_file)}
    import ray  # reads both as it is loaded

    ray.init(address=f"127.0.0.1:{record.gcs_port}", log_to_driver=False, logging_level="warning")
    yield
    ray.shutdown()


from api.cluster import LocalCluster  # noqa: E402 - after the environment is set
from api.settings import Settings  # noqa: E402

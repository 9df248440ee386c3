"""Keeps the local cluster up for as long as the service is: adopts or starts it, and starts another when it dies."""

import logging
import threading

from api.cluster import ClusterFailed, LocalCluster
from api.launcher import Endpoint

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
RETRY_SECONDS = 10.0


class ClusterKeeper:
    """A thread beside the service; the cluster itself outlives both."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cluster-keeper", daemon=True)
        self._endpoint: Endpoint | None = None
        self.failure: str | None = None
        """Why there is no cluster, once a start has failed."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Look after the cluster no more; it goes on."""
        self._stopping.set()
        self._thread.join(timeout=2.0)

    def endpoint(self) -> Endpoint | None:
        """The cluster that answers now; None while there is none."""
        return self._endpoint

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                record = self._cluster.ensure(cancelled=self._stopping)
            except (ClusterFailed, OSError) as error:
                if self._stopping.is_set():
                    return
                self.failure = str(error)
                log.error("%s", error)
                self._stopping.wait(RETRY_SECONDS)
                continue
            log.info("the local Ray cluster answers at %s (pid %d)", record.dashboard_url, record.pid)
            self.failure = None
            self._endpoint = Endpoint(record.dashboard_url, self._cluster.token())
            while self._cluster.alive() and not self._stopping.wait(LOOK_SECONDS):
                pass
            self._endpoint = None
            if not self._stopping.is_set():
                log.error("the local Ray cluster (pid %d) is gone; another is started", record.pid)

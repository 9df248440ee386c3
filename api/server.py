"""``python -m api.server``: one service of one home, on record in ``<home>/service.json`` while it runs."""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
from types import FrameType
from typing import TYPE_CHECKING

import psutil
import uvicorn

from api import ports
from api.cluster import ClusterFailed, LocalCluster
from api.files import locked, write_atomically
from api.settings import Settings
from data.errors import MantaError

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)
GRACE_SECONDS = 3
"""What requests in flight get at the end. Streams are told to end at once."""
EXIT_USAGE = 2
EXIT_FAILED = 1


class AlreadyRunning(MantaError):
    """Another service runs in this home."""

    code = "already_running"
    status = 409


class PortTaken(MantaError):
    """The address cannot be listened on."""

    code = "port_taken"
    status = 409


class SupervisorEnded(MantaError):
    """The thread that moves jobs is gone: what still answers would take jobs that nobody starts."""

    code = "supervisor_ended"
    status = 500


class Server(uvicorn.Server):
    """On record from the moment that it answers until it does no more; it ends when its supervisor does."""

    def __init__(self, app: "FastAPI", settings: Settings, url: str) -> None:
        # Root logging is set up in main; a line for each request would bury what matters.
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_SECONDS)
        super().__init__(config)
        self._app = app
        self._settings = settings
        self._url = url
        self.lost_supervisor = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        record = {"pid": os.getpid(), "started": psutil.Process().create_time(), "url": self._url}
        write_atomically(self._settings.service_file, json.dumps(record))
        log.info("Manta answers at %s (home %s)", self._url, self._settings.home)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._settings.service_file.unlink(missing_ok=True)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        if not self._app.state.services.supervision.alive():
            self.lost_supervisor = True
            self._app.state.services.changes.close()
            return True
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._app.state.services.changes.close()


def listen(settings: Settings) -> socket.socket:
    """A bound socket. Port 0 is the port of the last start if it is free: attempts that run report to it.

    Raises ``PortTaken``.
    """
    remembered = settings.home / "port"
    wanted = settings.port
    if wanted == 0 and remembered.exists():
        wanted = int(remembered.read_text())
    try:
        bound = _bind(settings.host, wanted or ports.free_port())
    except OSError as error:
        if settings.port:
            raise PortTaken(f"cannot listen on {settings.host}:{settings.port} (MANTA_PORT): {error.strerror}") from error
        bound = _bind(settings.host, ports.free_port())
    write_atomically(remembered, str(bound.getsockname()[1]))
    return bound


def _bind(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def url_of(settings: Settings, port: int) -> str:
    """How this machine reaches the service."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def worker_url(settings: Settings, port: int) -> str:
    """How workers reach it: those of another machine need this one's name where all of its addresses are listened on."""
    if settings.public_url is not None:
        return settings.public_url.rstrip("/")
    if settings.ray_address is not None and settings.host in ("0.0.0.0", "::"):
        return f"http://{socket.getfqdn()}:{port}"
    return url_of(settings, port)


def serve(settings: Settings) -> None:
    """Until SIGTERM or SIGINT. Raises ``AlreadyRunning``, ``PortTaken`` and ``SupervisorEnded``."""
    settings.make_home()
    with locked(settings.home / "service.lock", wait=False) as alone:
        if not alone:
            raise AlreadyRunning(f"a service of {settings.home} runs already; `manta down` stops it")
        if settings.ray_address is None:
            # Ray takes seconds to start: it begins before the application is even imported. What fails here fails again,
            # and is told, where the service waits for it.
            with contextlib.suppress(ClusterFailed, OSError):
                LocalCluster(settings).begin()
        from api.app import create_app

        bound = listen(settings)
        port = bound.getsockname()[1]
        app = create_app(settings, service_url=worker_url(settings, port))
        server = Server(app, settings, url_of(settings, port))
        server.run([bound])
        if server.lost_supervisor:
            raise SupervisorEnded(
                "the supervisor has ended, as its traceback above tells; running jobs go on without the service"
            )


def _exit(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def main() -> None:
    # uvicorn takes these over while it serves, and raises them again when it is done: a stop that was asked for is a success.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    try:
        settings = Settings.read()
        logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)
        serve(settings)
    except SupervisorEnded as error:
        log.critical("%s", error.detail)
        sys.exit(EXIT_FAILED)
    except MantaError as error:
        print(f"{error.code}: {error.detail}", file=sys.stderr)
        sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()

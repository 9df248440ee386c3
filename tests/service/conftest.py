"""Stores for the contract suite: SQLite always, PostgreSQL where its binaries are installed."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from service.models import Base
from service.store import Store
from tests.service.fakes import Manta


def _postgres_binaries() -> Path | None:
    found = shutil.which("initdb")
    candidates = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((each for each in reversed(candidates) if (each / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server of this session's own: a socket in a new directory, no port, nothing synced to disk."""
    binaries = _postgres_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's binaries are not installed")
    user = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root
    home = Path(tempfile.mkdtemp(prefix="manta-pg-", dir="/tmp"))  # short: a socket's path ends at 107 bytes
    if user is not None:
        shutil.chown(home, user)
    data = home / "data"
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "manta", "-A", "trust", "--no-sync", "--encoding=UTF8", "--locale=C"],
        user=user,
        cwd=home,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    options = {"listen_addresses": "", "unix_socket_directories": str(home), "fsync": "off", "synchronous_commit": "off"}
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                binaries / "postgres",
                "-D",
                data,
                *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
            ],
            user=user,
            cwd=home,
            stdout=log,
            stderr=log,
        )
    url = f"postgresql://manta@/postgres?host={home}"
    try:
        _until_ready(url, server)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)
        shutil.rmtree(home, ignore_errors=True)


def _until_ready(url: str, server: "subprocess.Popen[bytes]") -> None:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    while server.poll() is None:
        try:
            with engine.connect():
                engine.dispose()
                return
        except OperationalError:
            time.sleep(0.05)  # another process starts; there is no event to wait for
    raise RuntimeError(f"PostgreSQL ended with {server.returncode}")


@pytest.fixture(scope="session")
def postgres_store(postgres_url: str) -> Iterator[Store]:
    store = Store.open(postgres_url)
    yield store
    store.close()


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite:///{tmp_path}/manta.db")
    yield store
    store.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest) -> Store:
    """The contract suite's store, empty: each test runs once on every database."""
    if request.param == "sqlite":
        found: Store = request.getfixturevalue("sqlite_store")
        return found
    found = request.getfixturevalue("postgres_store")
    tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
    with found.write() as session:
        session.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
    return found


@pytest.fixture
def manta(store: Store, tmp_path: Path) -> Manta:
    return Manta(store, tmp_path / "home")


@pytest.fixture
def small(sqlite_store: Store, tmp_path: Path) -> Manta:
    """On SQLite alone, for what does not depend on the database."""
    return Manta(sqlite_store, tmp_path / "home")

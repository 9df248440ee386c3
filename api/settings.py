"""Everything that can be set about a Manta service: one frozen object, read once from ``MANTA_*`` variables.

All that one Manta owns lies under ``home``, so two users (or two homes of one user) on one machine never meet.
"""

import hashlib
import ipaddress
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from data.errors import MantaError


class SettingsInvalid(MantaError):
    """A ``MANTA_*`` variable has a value that cannot be used."""

    code = "settings_invalid"
    status = 500


def is_loopback(host: str) -> bool:
    """Whether ``host`` can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


class Settings(BaseSettings):
    """Frozen settings; each field is the variable ``MANTA_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix="MANTA_", frozen=True, extra="ignore", use_attribute_docstrings=True)

    home: Annotated[Path, AfterValidator(_absolute)] = Field(default=Path("~/.local/share/manta"), validate_default=True)
    """Directory of everything this Manta keeps: store, jobs, prepared data, logs, the local cluster's record."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs ``token``."""
    port: int = Field(default=0, ge=0, le=65535)
    """0 picks a free port at the first start and keeps it, so that running attempts find a restarted service."""
    public_url: str | None = None
    """How workers reach this service, where that is not ``http://host:port`` (behind a proxy, or listening on 0.0.0.0)."""
    url: str | None = None
    """For clients: the service to talk to; None is this machine's, found through ``service.json``."""
    token: SecretStr | None = None
    """The bearer token that every request must carry. None switches authentication off, on loopback only."""
    database_url: SecretStr | None = None
    """SQLAlchemy URL, often with a password; None is SQLite at ``<home>/manta.db``."""
    ray_address: str | None = None
    """``http://host:8265`` of an existing cluster's dashboard; None starts and keeps a local cluster."""
    ray_token: SecretStr | None = None
    """Bearer token of the cluster at ``ray_address``, where it asks for one."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of the local cluster; None is the machine's cores, and never fewer than 4."""
    num_gpus: int | None = Field(default=None, ge=0)
    """GPUs of the local cluster; None lets Ray count them."""
    max_unfinished_jobs: int = Field(default=1000, ge=1)
    """A submit beyond this many jobs that have not ended is answered with 429."""
    max_body_bytes: int = Field(default=16 * 2**20, ge=1024)
    """A larger request body is answered with 413."""
    tick_seconds: float = Field(default=1.0, gt=0)
    """The supervisor's longest pause between two looks; a submit or cancel wakes it at once."""
    log_level: str = "info"

    tokenless_hosts: ClassVar[str] = "127.0.0.1, ::1 or localhost"

    @model_validator(mode="after")
    def _open_only_on_loopback(self) -> Self:
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"MANTA_HOST is {self.host}, which other machines can reach, and MANTA_TOKEN is not set:"
                f" set a token, or listen on {self.tokenless_hosts}"
            )
        if self.token is not None and len(self.token.get_secret_value()) < 16:
            raise ValueError("MANTA_TOKEN is shorter than 16 characters")
        return self

    @classmethod
    def read(cls, **overrides: object) -> Self:
        """Settings from the environment. Raises ``SettingsInvalid`` with every variable at fault by name."""
        try:
            return cls(**overrides)  # type: ignore[arg-type]
        except ValidationError as error:
            raise SettingsInvalid("; ".join(_explain(entry) for entry in error.errors())) from error

    @cached_property
    def store_url(self) -> str:
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.home / 'manta.db'}"

    @property
    def jobs_dir(self) -> Path:
        """``<job id>/{checkpoints,logs,attempts}`` of every job."""
        return self.home / "jobs"

    @property
    def prepared_dir(self) -> Path:
        return self.home / "prepared"

    @property
    def logs_dir(self) -> Path:
        return self.home / "logs"

    @property
    def service_file(self) -> Path:
        """``{pid, started, url}`` of the service that runs now."""
        return self.home / "service.json"

    @property
    def runtime_dir(self) -> Path:
        """Short directory for sockets, whose paths end at 107 bytes: one for each user and home."""
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:10]
        return Path("/tmp") / f"manta-{os.getuid()}-{digest}"

    def make_home(self) -> None:
        """Create ``home``, for its user alone."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self.jobs_dir, self.prepared_dir, self.logs_dir):
            directory.mkdir(exist_ok=True)


def _explain(entry: object) -> str:
    assert isinstance(entry, dict)
    name = "MANTA_" + "_".join(str(part) for part in entry["loc"]).upper() + ": " if entry["loc"] else ""
    return name + str(entry["msg"]).removeprefix("Value error, ")

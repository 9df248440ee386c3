"""The file that an attempt's driver is started with. It holds the attempt's token: only its user may read it."""

import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from workers.attempt import Order


def order_path(job_dir: Path, attempt: int) -> Path:
    return job_dir / "attempts" / str(attempt) / "order.json"


def write_order(path: Path, make: Callable[[str], Order]) -> Order:
    """Write ``make(token)`` to ``path`` (mode 0600, whole or not at all).

    The token is drawn once: whoever finds a file there (after a crash, or a supervisor that overtook another) keeps its
    token, so the driver, the store and every writer agree on one. Raises OSError when the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _place(path, make(secrets.token_urlsafe(32)), replace=False)
    try:
        found = Order.model_validate_json(path.read_bytes())
    except ValidationError:  # a machine's crash emptied it: no driver has read a token from that
        found = make(secrets.token_urlsafe(32))
        _place(path, found, replace=True)
    order = make(found.token)
    if order != found:  # the service's address may be another by now
        _place(path, order, replace=True)
    return order


def _place(path: Path, order: Order, *, replace: bool) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".order-")  # mkstemp's files are 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(order.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(name, path)
        elif not path.exists():
            _link(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _link(name: str, path: Path) -> None:
    try:
        os.link(name, path)  # unlike rename, it does not put ours over another's
    except FileExistsError:
        return

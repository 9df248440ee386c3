"""Free TCP ports, picked below the range that outgoing connections take theirs from."""

import contextlib
import random
import socket
from collections.abc import Iterator

# Linux hands ports from 32768 up to outgoing connections and to `bind(0)`, BSD and macOS from 49152. A port from below stays
# free between the moment it is picked and the moment its process binds it, unless another program wants exactly this one.
FIRST, LAST = 20_000, 32_767


def _bound(port: int) -> socket.socket | None:
    candidate = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        candidate.bind(("0.0.0.0", port))
    except OSError:
        candidate.close()
        return None
    return candidate


@contextlib.contextmanager
def picked(count: int) -> Iterator[list[int]]:
    """``count`` different free ports, held until the block ends."""
    held: list[socket.socket] = []
    try:
        # The global generator may be seeded by whoever runs us; two processes must not then pick the same ports.
        for port in random.SystemRandom().sample(range(FIRST, LAST + 1), LAST + 1 - FIRST):
            if len(held) == count:
                break
            if (candidate := _bound(port)) is not None:
                held.append(candidate)
        yield [candidate.getsockname()[1] for candidate in held]
    finally:
        for candidate in held:
            candidate.close()


def free_port() -> int:
    """One free port."""
    with picked(1) as (port,):
        return port

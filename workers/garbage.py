"""Python's cyclic garbage collector, on all ranks at the same step.

Left to itself it stops each rank at another moment, and as every step waits for the slowest rank, all ranks stand still each
time; in a Ray worker, which has many modules loaded, for tens of milliseconds. torchtitan does the same for the same reason.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

COLLECT_STEPS = 50


@contextmanager
def collected_together() -> Iterator[None]:
    """No automatic collection inside; what is alive at the start is not looked at again."""
    enabled = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def after_step(step: int) -> None:
    if step % COLLECT_STEPS == 0:
        gc.collect()

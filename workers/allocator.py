"""glibc's malloc, told to keep what a training process frees, in pieces of up to 32 MiB.

A step frees and allocates the same activations again and again. By default glibc hands the larger ones back to the kernel,
and each new one then costs page faults: one thread on small models loses 2 to 3 % of its time to them. The thresholds are
those of mallopt(3).
"""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_MMAP_BYTES = 32 << 20  # the most that glibc takes
_TRIM_BYTES = 2**31 - 1


def keep_freed_memory() -> bool:
    """For this process, from now on. False where there is no ``mallopt`` or it refuses.

    The thresholds count for the main heap; the heaps that glibc gives to threads are returned to the kernel whatever they
    are. Here threads that start later are kept to the main one. A Ray worker has threads when it gets here and needs
    ``MALLOC_ARENA_MAX=1`` in its environment: Manta's own cluster sets it, on another cluster it is the operator's to set.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    options = {_M_ARENA_MAX: 1, _M_MMAP_THRESHOLD: _MMAP_BYTES, _M_TRIM_THRESHOLD: _TRIM_BYTES}
    taken = [mallopt(option, value) == 1 for option, value in options.items()]
    return all(taken)

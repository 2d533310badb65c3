"""Memory of the host that a step frees is kept for the next step."""

from __future__ import annotations

import ctypes

_KEPT_BYTES = 1 << 30
# <malloc.h> of the GNU C library
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Keep up to 1 GiB of what was freed, in this process; whether the C library could be told.

    glibc gives tensors of more than 32 MiB (logits are) back to the system as soon as they are
    freed, and every step takes them anew, page by page and zeroed: a fifth of the time of a small
    model's step on a CPU. Tensors on a GPU have an allocator of their own.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl and macOS have none
    if mallopt is None:
        return False
    return all(mallopt(option, _KEPT_BYTES) for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD))

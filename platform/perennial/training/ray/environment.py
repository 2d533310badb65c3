"""Environment variables of Ray Train's processes: the C library's allocator, and Ray's intervals.

glibc returns tensors of more than 32 MiB (logits are) to the system as soon as they are freed, and
every step takes them again, page by page and zeroed: a fifth of the time of a small model's step on
a CPU. A thread that is not the process's first, such as Ray Train's training thread, gets memory in
heaps of 64 MiB that are returned whenever one is empty. One arena for all threads that keeps freed
memory avoids both (benchmarks/results/train_speed.md). What is larger than the logits is apart from
the arena, and is returned: buffers of the size of the model, of which an arena would keep a hole
for each place that one was in (benchmarks/results/memory.md). Tensors on a GPU have an allocator of
their own.
"""

from __future__ import annotations

import ctypes
import gc
import os

_KEPT_BYTES = 1 << 30
_LEAST_APART_BYTES = 32 << 20
"""What glibc lets the size grow to from which on it returns what is freed."""
_HEADER_BYTES = 1 << 12
"""The allocator's own, with room for alignment."""
_RAS_SHARE = 0.9
"""Of the limit; the detector looks every 15 seconds."""
_RAY_TRAIN = {
    # A dead worker is noticed at the next poll: 1 second earlier on average than by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # How long a start waits for nodes, of which one may be dead, before it looks at the cluster
    # again. Starting workers is not part of it, and requests to an autoscaler stay in place.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}


_set_here: dict[str, str] = {}
"""variables that `set_ray_train_defaults` has set in this process"""


def allocator_environment(logits_bytes: int) -> dict[str, str]:
    """Return a worker's allocator settings; variables of this process take precedence.

    They have to be set before the worker's process starts: glibc reads them once. Other C libraries
    ignore them.

    Args:
        logits_bytes: of a micro batch, the largest tensor that every one of them takes and frees.
    """
    apart = min(max(logits_bytes + _HEADER_BYTES, _LEAST_APART_BYTES), _KEPT_BYTES)
    settings = {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": str(_KEPT_BYTES),
        "MALLOC_MMAP_THRESHOLD_": str(apart),
    }
    return {name: os.environ.get(name, value) for name, value in settings.items()}


def return_freed_memory() -> None:
    """Give the system what building an engine has freed, which the allocator would keep.

    Steps use other sizes, so the freed pieces would stay beside what steps take. Other C libraries
    than glibc return them by themselves.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def set_ray_train_defaults(hang_seconds: float, *, on_gpus: bool) -> None:
    """Set Ray Train's intervals in this process, where the user has not set them.

    What an earlier job of the process needed is replaced.

    On GPUs all ranks may have begun the same collectives when one of them hangs: their hosts only
    launch them. NCCL knows which rank is behind (RAS), and Ray Train's detector, which is off by
    default and then only reports, asks it. It acts shortly before the limit at which all workers of
    such a group are killed.

    Args:
        hang_seconds: time without progress after which workers hang.
        on_gpus: whether the workers exchange through NCCL.
    """
    settings = dict(_RAY_TRAIN)
    if on_gpus:
        settings |= {
            "RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR": "1",
            "RAY_TRAIN_NCCL_RAS_ACTION": "fail",
            "RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S": f"{_RAS_SHARE * hang_seconds:g}",
        }
    for name, value in _set_here.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    _set_here.clear()
    for name, value in settings.items():
        if name not in os.environ:
            os.environ[name] = _set_here[name] = value

"""Settings of the C library's allocator, which it reads when a worker's process starts.

glibc gives tensors of more than 32 MiB (logits are) back to the system as soon as they are freed,
and every step takes them anew, page by page and zeroed: a fifth of the time of a small model's step
on a CPU. And a thread that is not the process's first, as Ray Train's training thread, gets memory
in heaps of 64 MiB that go back whenever one is empty. One arena for all threads, which keeps what
was freed, has neither (benchmarks/results/train_speed.md). Tensors on a GPU have an allocator of
their own.
"""

from __future__ import annotations

import os

_KEPT_BYTES = 1 << 30
_SETTINGS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(_KEPT_BYTES),
    "MALLOC_MMAP_THRESHOLD_": str(_KEPT_BYTES),
}


def allocator_environment() -> dict[str, str]:
    """Environment variables of a worker: those of this process, or else ours.

    Other C libraries than glibc do not read them.
    """
    return {name: os.environ.get(name, ours) for name, ours in _SETTINGS.items()}

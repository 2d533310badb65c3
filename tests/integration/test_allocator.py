"""Freed tensors stay with the process: measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from perennial.training.allocator import keep_freed_memory

if sys.argv[1] == "kept" and not keep_freed_memory():
    print("none")
    raise SystemExit
torch.set_num_threads(1)
for _ in range(10):
    torch.ones(16 << 20)  # 64 MiB, taken and freed until they have found their place
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
    )
    if done.stdout.strip() == "none":
        pytest.skip("this C library has no mallopt")
    return int(done.stdout)


def test_a_freed_tensor_s_memory_is_used_again_without_new_pages() -> None:
    assert _page_faults("kept") * 5 < _page_faults("as it is")

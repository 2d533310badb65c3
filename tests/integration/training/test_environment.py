"""Freed tensors stay with the process: measured in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from perennial.training.ray.environment import allocator_environment, set_ray_train_defaults

SCRIPT = """
import resource, threading, torch

def step():
    for _ in range(10):
        torch.ones(16 << 20)  # 64 MiB, taken and freed

def train():
    step()  # until they have found their place
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

torch.set_num_threads(1)
thread = threading.Thread(target=train)  # as Ray Train does
thread.start()
thread.join()
"""


def _page_faults(environment: dict[str, str]) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc reads these variables")
def test_a_freed_tensor_s_memory_is_used_again_without_new_pages() -> None:
    assert _page_faults(allocator_environment(64 << 20)) * 5 < _page_faults({})


def test_what_a_person_set_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    ours = allocator_environment(0)
    assert ours["MALLOC_ARENA_MAX"] == "4"
    assert set(ours) == {"MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}


def test_a_job_leaves_no_interval_to_the_next_one_in_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of_ray() -> dict[str, str]:
        return {n: v for n, v in os.environ.items() if n.startswith("RAY_TRAIN_")}

    monkeypatch.setattr(os, "environ", {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "7"})
    set_ray_train_defaults(600.0, on_gpus=True)
    assert of_ray()["RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S"] == "540"
    set_ray_train_defaults(60.0, on_gpus=True)
    assert of_ray()["RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S"] == "54"
    set_ray_train_defaults(60.0, on_gpus=False)
    assert not [name for name in of_ray() if "NCCL" in name]
    assert of_ray()["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "7", "a person set it"


HELD_BESIDE_LOGITS = """
import resource
from pathlib import Path

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

buffer = b"x" * (80 << 20)
last = b"x" * (1 << 16)  # the heap cannot end below it
taken = resident()
del buffer
print(taken - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc reads these variables")
@pytest.mark.parametrize(("logits", "returned"), [(8 << 20, True), (80 << 20, False)])
def test_what_is_larger_than_logits_leaves_no_hole(logits: int, returned: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELD_BESIDE_LOGITS],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | allocator_environment(logits),
    )
    assert (int(done.stdout) > 70 << 20) is returned


HELD_AFTER_A_START = """
import resource
from pathlib import Path
from perennial.training.ray.environment import return_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

blocks = [b"x" * (1 << 16) for _ in range(3200)]  # 200 MiB
last = b"x" * (1 << 16)  # the heap cannot end below it
del blocks
kept = resident()
return_freed_memory()
print(kept - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others return it by themselves")
def test_what_a_start_has_freed_goes_back_to_the_system() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELD_AFTER_A_START],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | allocator_environment(0),
    )
    assert int(done.stdout) > 150 << 20


UNUSED_BY_WORKERS = """
import sys
import perennial.training.worker
unused = {"mlflow", "lm_eval", "matplotlib", "typer", "fastapi", "s3fs", "gcsfs"}
assert not unused & set(sys.modules), unused & set(sys.modules)
import mlflow  # what was kept away from DeepSpeed can still be imported
"""


@pytest.mark.long
def test_a_worker_imports_nothing_that_only_a_driver_uses() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNUSED_BY_WORKERS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

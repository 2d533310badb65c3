"""What the facts of a machine mean for a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perennial.config.training import TrainingSpec
from perennial.diagnosis.machine import MachineFacts, find_other_versions, judge_machine

GIB = 1 << 30
SOUND = MachineFacts(
    cpus=16,
    memory_bytes=64 * GIB,
    shared_bytes=8 * GIB,
    scratch="/tmp",
    scratch_bytes=100 * GIB,
    open_files=65536,
    driver_gpus=("GPU 0: NVIDIA H200 (UUID: GPU-1)", "GPU 1: NVIDIA H200 (UUID: GPU-2)"),
    torch="2.13.0+cu130",
    torch_gpus=2,
)
BARE = replace(SOUND, driver_gpus=(), torch="2.13.0+cpu", torch_gpus=0)


def _training(**fields: object) -> TrainingSpec:
    return TrainingSpec.model_validate({"global_batch": 8, "micro_batch": 4, **fields})


def _told(facts: MachineFacts, training: TrainingSpec | None = None, *, alone: bool = True) -> str:
    found = judge_machine(facts, training, alone=alone)
    return "\n".join(f"{d.verdict} {d.subject}: {d.state}; {d.remedy}" for d in found)


def test_a_sound_machine_has_no_fault_and_names_its_gpus() -> None:
    found = list(judge_machine(SOUND, _training(workers=2, gpus_per_worker=1), alone=True))
    assert {its.verdict for its in found} == {"ok"}
    assert all(not its.remedy for its in found)
    assert "2 GPUs (NVIDIA H200)" in _told(SOUND)
    assert "no GPU" in _told(BARE)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (replace(SOUND, memory_bytes=GIB), "notice memory: 1.0 GiB free; end other programs"),
        (replace(SOUND, memory_bytes=None), "notice memory: it is not known"),
        (replace(SOUND, shared_bytes=GIB // 16), "notice /dev/shm: 0.1 GiB free; give the cont"),
        (replace(SOUND, scratch_bytes=5 * GIB), "notice /tmp: 5.0 GiB free"),
        (replace(SOUND, scratch_bytes=GIB // 2), "wrong /tmp: 0.5 GiB free; free some, or set TM"),
        (replace(SOUND, open_files=1024), "notice open files: at most 1,024; ulimit -n"),
        (replace(SOUND, torch_gpus=0), "wrong torch: 2.13.0+cu130 sees none of 2 GPUs"),
        (replace(SOUND, torch_problem="out of memory"), "cannot use its GPUs: out of memory"),
        (replace(SOUND, torch="", torch_problem="no module"), "cannot be imported: no module"),
        (replace(SOUND, pins=(("ray", "2.59.0", "2.60.0"),)), "wrong ray: version 2.59.0, and per"),
    ],
)
def test_each_fault_has_a_remedy(facts: MachineFacts, told: str) -> None:
    assert told in _told(facts)


def test_gpus_are_compared_with_what_the_run_asks_for() -> None:
    assert "wrong training.gpus_per_worker: 4 workers need 4 GPUs, and torch sees 2" in _told(
        SOUND, _training(workers=4, gpus_per_worker=1)
    )
    assert "notice training.gpus_per_worker: 0: the 2 GPUs stay unused" in _told(
        SOUND, _training(workers=2)
    )
    assert "gpus_per_worker" not in _told(BARE, _training(gpus_per_worker=1), alone=False)


def test_a_package_that_is_not_installed_has_no_pins() -> None:
    assert list(find_other_versions("no-such-package-anywhere")) == []

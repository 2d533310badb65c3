"""What `status` says about machines."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from perennial.cli.look.status import _machine_notes
from perennial.training.machines import MachineRecord, MachineSpeed


def notes(*records: MachineRecord) -> list[tuple[str, str]]:
    state: Any = SimpleNamespace(machines={record.address: record for record in records})
    return list(_machine_notes(state))


def test_machines_without_trouble_are_one_line() -> None:
    fast, slow = MachineSpeed(2e12, 8e10, 4e10), MachineSpeed(1e12, 8e10, 3e10)
    assert notes(MachineRecord("a", speed=fast), MachineRecord("b", speed=slow)) == [
        (
            "machines",
            "from 1 TFLOP/s, 80 GB/s inside, 30 GB/s to others; "
            "to 2 TFLOP/s, 80 GB/s inside, 40 GB/s to others",
        )
    ]
    assert notes() == notes(MachineRecord("a")) == []


def test_failures_and_workers_that_lag_are_named() -> None:
    told = notes(
        MachineRecord("a", pace={0: 1.0, 1: 1.1}),
        MachineRecord("b", pace={2: 1.0, 3: 2.0}),
        MachineRecord("c", failures=[1.0]),
    )
    assert told == [
        ("machine", "b: worker 2 computes 1 s a step, worker 3 computes 2 s a step"),
        ("machine", "c: workers failed on it once within a day"),
    ]

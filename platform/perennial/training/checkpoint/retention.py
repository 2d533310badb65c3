"""Retention of checkpoints: the ends of phases and of the stage, and the last few."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from perennial.store import Store
from perennial.store.borrowing import read_pins
from perennial.training.checkpoint import manifest as checkpoints


def kept(
    steps: Iterable[int], phase_ends: Collection[int], stage_end: int, last_k: int
) -> set[int]:
    """Return the steps whose checkpoints stay.

    Args:
        steps: committed steps.
        phase_ends: trunk steps at which a phase of the schedule ends.
        stage_end: trunk step at which the stage ends.
        last_k: number of the latest checkpoints that stay besides.
    """
    ordered = sorted(steps)
    always = {step for step in ordered if step in phase_ends or step == stage_end}
    return always | set(ordered[-last_k:])


def sweep(
    store: Store, folder: str, phase_ends: Collection[int], stage_end: int, last_k: int
) -> None:
    """Remove below `folder` what `kept` does not name, and what never became a checkpoint.

    A checkpoint's manifest goes before its files (invariant I6). Nothing at or above the newest
    committed step is touched, except attempts that lost the race for a committed step. What a fork
    borrows stays.
    """
    attempts: dict[int, set[str]] = {}
    committed = set()
    for entry in store.list(folder):
        number, _, rest = entry.key.removeprefix(f"{folder}/").partition("/")
        if not number.isdecimal():
            continue
        step = int(number)
        of_step = attempts.setdefault(step, set())
        attempt, below, _ = rest.partition("/")
        if below:
            of_step.add(attempt)
        elif attempt == checkpoints.MANIFEST:
            committed.add(step)
    stay = kept(committed, phase_ends, stage_end, last_k)
    newest = max(committed, default=-1)
    # Read behind the listing: a fork pins a checkpoint, and then looks whether it is there.
    pinned = {key for pin in read_pins(store) for key in pin.folders}
    for step, of_step in attempts.items():
        key = checkpoints.folder_of(folder, step)
        if key in pinned:
            continue
        if step < newest and step not in stay:
            store.remove(key)
        elif step in committed and len(of_step) > 1:
            for lost in of_step - {checkpoints.read_manifest(store, key).attempt}:
                store.remove(checkpoints.place_of(key, lost))

"""Refusal of a checkpoint of another plan; its step alone says nothing about its plan."""

from __future__ import annotations

from perennial.errors import InputError
from perennial.mixture import StageMix
from perennial.schedules import Schedule, differences, from_dict
from perennial.training.checkpoint.manifest import CheckpointManifest


def check_same_plan(
    checkpoint: str, manifest: CheckpointManifest, mix: StageMix, schedule: Schedule
) -> None:
    """Refuse to go on from a checkpoint that was trained on other data, or at other rates.

    Args:
        checkpoint: its key.
        manifest: its manifest.
        mix: what the job trains on.
        schedule: the job's.

    Raises:
        InputError: code `checkpoint-of-another-plan`; names the first field that differs.
    """
    problem = _difference(manifest, mix, schedule)
    if problem:
        raise InputError(
            checkpoint,
            "manifest.json",
            f"it is a checkpoint of another plan: {problem}",
            "move the folder of this stage or branch out of the store, or restore the ledger that "
            "belongs to it",
            code="checkpoint-of-another-plan",
        )


def _difference(manifest: CheckpointManifest, mix: StageMix, schedule: Schedule) -> str:
    """Return in what a checkpoint's plan differs; "" where it is the same."""
    try:
        stored, rates = StageMix.from_dict(manifest.mix), from_dict(manifest.schedule)
    except (ValueError, LookupError, TypeError) as broken:
        return f"its own cannot be read ({' '.join(str(broken).split())})"
    one, other = stored.to_dict(), mix.to_dict()
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            return f"{name} of its mixture is {one.get(name)}, and not {other.get(name)}"
    changed = differences(rates, schedule)
    return f"schedule {changed[0]}" if changed else ""

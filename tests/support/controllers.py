"""Other controllers of a run."""

from __future__ import annotations

from perennial.controller.context import Workspace


def supersede(work: Workspace) -> None:
    """Take charge in place of a controller that lives, and end."""
    other = Workspace(work.spec, work.where, take_over=True)
    other.take_charge()
    other.close()

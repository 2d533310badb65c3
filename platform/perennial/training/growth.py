"""Decide when a worker group restarts to take in machines that are idle. Pure.

To grow, the whole group restarts, and every restart costs as much as the last one did. Two things
must hold. The idle machines have missed a part of that cost: machines that an autoscaler brings one
by one are taken in together. And what they add until the group is likely to lose a machine, which
restarts it with all machines in any case, is more than the restart costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PATIENCE = 0.25
"""work that idle machines miss before a group grows, as a part of what its restart costs"""

AT_ONCE = 0.0


@dataclass
class GrowthDecision:
    """Judges whether a group should grow; all times are in seconds.

    Attributes:
        patience: see PATIENCE; AT_ONCE does not wait, infinity never grows.
        trained_seconds: for which groups have trained.
        losses: groups that ended because of a machine.
        missed: machine-seconds that idle machines could have trained in this group.
    """

    patience: float = PATIENCE
    trained_seconds: float = 0.0
    losses: int = 0
    missed: float = 0.0

    def note_start(self) -> None:
        """Note that another group starts, with all machines there are."""
        self.missed = 0.0

    def note_loss(self) -> None:
        """Note that a group ended because of a machine."""
        self.losses += 1

    def advance(self, seconds: float, idle: int) -> None:
        """Note that the group trained while some machines were idle."""
        self.trained_seconds += seconds
        self.missed += seconds * idle

    @property
    def quiet_seconds(self) -> float:
        """Return how long a group trains before it loses a machine, by what was seen so far."""
        return self.trained_seconds / max(1, self.losses)

    def seconds_left(self, workers: int, idle: int, restart_seconds: float) -> float:
        """Return for how long the group should train on before it grows; 0 for now.

        Args:
            workers: in the group.
            idle: machines that could join it.
            restart_seconds: without training when it restarts.
        """
        if idle <= 0:
            return math.inf
        if self.patience == AT_ONCE:
            return 0.0
        missing = self.patience * workers * restart_seconds - self.missed
        quiet = (workers + idle) * restart_seconds / idle
        return max(0.0, missing / idle, quiet * max(1, self.losses) - self.trained_seconds)

"""Seconds of a step by part, on the host's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Literal, get_args

Part = Literal["data", "forward", "backward", "optimizer", "communication", "checkpoint", "other"]
PARTS: tuple[Part, ...] = get_args(Part)
COMPUTING: tuple[Part, ...] = ("forward", "backward", "optimizer")


class Meter:
    """Charges every moment to exactly one part, so the parts of a lap add up to its wall time.

    On GPUs kernels run behind the host, which then waits where it needs a result: there the parts
    say where the host waited, and a trace (`training.profile`) what the device did.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._part: Part = "other"
        self._since = clock()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._done = (0, 0.0)

    @property
    def done(self) -> tuple[int, float]:
        """Return the laps so far, and the seconds of them that were spent computing."""
        return self._done

    @property
    def part(self) -> Part:
        """Return the part that is charged now."""
        return self._part

    def to(self, part: Part) -> Part:
        """Charge time to `part` from now on. Returns the part charged before, to go back to."""
        now = self._clock()
        before = self._part
        self._seconds[before] += now - self._since
        self._part, self._since = part, now
        return before

    def seconds(self) -> dict[Part, float]:
        """Return seconds by part since the last lap, which goes on."""
        self.to(self._part)
        return dict(self._seconds)

    def lap(self) -> dict[Part, float]:
        """Return seconds by part since the last lap, for all parts."""
        self.to(self._part)
        seconds, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        laps, computing = self._done
        self._done = (laps + 1, computing + sum(seconds[part] for part in COMPUTING))
        return seconds


def shares(laps: list[Mapping[str, float]]) -> dict[str, float]:
    """Return every part's share of the laps' whole time, from 0 to 1; empty without any."""
    total = sum(sum(lap.values()) for lap in laps)
    if not total:
        return {}
    return {part: sum(lap.get(part, 0.0) for lap in laps) / total for part in PARTS}

"""What any rank knows and every rank must act on at the same step. Pure."""

from __future__ import annotations

from typing import NamedTuple


class Votes(NamedTuple):
    """One rank's votes; after they were summed over the ranks, what they agreed on.

    stop: the driver asked to save and end.
    preempted: a worker was told that its process or node ends.
    hopeless: too many checkpoints in a row could not be stored.
    busy: a snapshot is not in the store yet.
    """

    stop: bool = False
    preempted: bool = False
    hopeless: bool = False
    busy: bool = False

    @property
    def ending(self) -> bool:
        """Whether training must not go on after this step."""
        return self.stop or self.preempted or self.hopeless

    @classmethod
    def of(cls, sums: list[float]) -> Votes:
        """What the ranks agreed on, from each vote's sum over them."""
        return cls(*(total > 0 for total in sums))

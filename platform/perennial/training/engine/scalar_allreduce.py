"""What the ranks tell each other of a step: a few numbers, summed behind the next step."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist


class Exchange:
    """One small all-reduce a step that nobody waits for until the next step needs its result.

    Every rank calls `send` and `receive` at the same places, so all receive the same sums at the
    same place and may act on them together.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: torch.Tensor | None = None
        self._handle: dist.Work | None = None

    def send(self, *numbers: torch.Tensor | float) -> None:
        """Begin to sum these numbers over all ranks; a sum is taken before the next begins."""
        assert self._sums is None, "the last sums were not received"
        tensors = [torch.as_tensor(n, dtype=torch.float32, device=self._device) for n in numbers]
        self._sums = torch.stack([tensor.reshape(()) for tensor in tensors])
        self._handle = dist.all_reduce(self._sums, async_op=True)

    def receive(self) -> list[float] | None:
        """The sums that were sent for and not received yet, or None."""
        if self._sums is None or self._handle is None:
            return None
        self._handle.wait()
        sums: list[float] = self._sums.tolist()
        self._sums = self._handle = None
        return sums


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

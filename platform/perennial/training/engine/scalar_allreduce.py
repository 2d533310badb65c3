"""Asynchronous all-reduce of a step's numbers, overlapped with the next step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist

from perennial.training.metrics import Combine


class Votes(NamedTuple):
    """One rank's votes, or after they were combined, what any rank voted for.

    stop: the driver asked to save and end.
    preempted: this process or its node ends soon.
    hopeless: too many checkpoints in a row could not be stored.
    busy: a snapshot is not in the store yet.
    """

    stop: bool = False
    preempted: bool = False
    hopeless: bool = False
    busy: bool = False

    @property
    def ending(self) -> bool:
        """Return whether training must end after this step."""
        return self.stop or self.preempted or self.hopeless


class Reduced(NamedTuple):
    """A step's numbers over all ranks: values by name, and the votes."""

    values: dict[str, float]
    votes: Votes


class StepReduction:
    """Combines a step's numbers over the ranks while the next step runs.

    Every rank calls `start` and `finish` at the same places with the same names, so all of them
    have the same results at the same step and may act on them together.
    """

    def __init__(self, device: torch.device, *, counts: bool = True) -> None:
        """Prepare to reduce.

        Args:
            device: of the collectives.
            counts: whether this rank's numbers are in the sums; those of one rank of every
                tensor-parallel group are.
        """
        self._device = device
        self._counts = counts
        self._sums: torch.Tensor | None = None
        self._maxima: torch.Tensor | None = None
        self._handles: list[dist.Work] = []
        self._names: tuple[list[str], list[str]] = ([], [])

    def start(
        self, values: Mapping[str, tuple[Combine, torch.Tensor | float]], votes: Votes
    ) -> None:
        """Start to combine; the numbers of the step before must have been taken.

        Args:
            values: by name, how the ranks' numbers are combined, and this rank's.
            votes: this rank's.
        """
        assert not self._handles, "the numbers of the step before were not taken"
        world = dist.get_world_size()
        sums: dict[str, torch.Tensor | float] = {}
        maxima: dict[str, torch.Tensor | float] = {}
        for name, (combine, number) in values.items():
            if combine == "max":
                maxima[name] = number
            else:
                number = number if self._counts or combine == "mean" else 0.0
                sums[name] = number / world if combine == "mean" else number
        self._names = (list(sums), list(maxima))
        self._sums = self._stack([*sums.values(), *votes])
        self._handles.append(dist.all_reduce(self._sums, async_op=True))
        if maxima:
            self._maxima = self._stack(list(maxima.values()))
            self._handles.append(dist.all_reduce(self._maxima, op=dist.ReduceOp.MAX, async_op=True))

    def finish(self) -> Reduced | None:
        """Wait for the numbers that were started last; None when they were taken already."""
        if self._sums is None:
            return None
        for handle in self._handles:
            handle.wait()
        sums: list[float] = self._sums.tolist()
        maxima: list[float] = [] if self._maxima is None else self._maxima.tolist()
        self._sums = self._maxima = None
        self._handles = []
        summed, largest = self._names
        values = dict(zip(summed, sums, strict=False)) | dict(zip(largest, maxima, strict=True))
        return Reduced(values, Votes(*(total > 0 for total in sums[len(summed) :])))

    def _stack(self, numbers: list[torch.Tensor | float]) -> torch.Tensor:
        tensors = [torch.as_tensor(n, dtype=torch.float32, device=self._device) for n in numbers]
        return torch.stack([tensor.reshape(()) for tensor in tensors])

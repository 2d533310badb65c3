"""What the ranks tell each other of a step: a few numbers, summed behind the next step."""

from __future__ import annotations

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

"""Bytes of tensors that torch has allocated on the CPU, by its own record of every allocation."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


class AllocatedBytes:
    """The tensors allocated inside a `with` block.

    Those that were there before are not counted, and neither is their end. What is freed into the
    C library counts as free, as with `torch.cuda.max_memory_allocated`.

    Attributes:
        peak: most bytes at once.
        peaks: most bytes at once from each `mark` to the next.
        at_marks: bytes at each `mark`.
    """

    def __init__(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.peaks, self.at_marks = [0], list[int]()

    def __enter__(self) -> AllocatedBytes:
        self._profile.__enter__()
        return self

    def mark(self) -> None:
        """Begin another entry of `peaks`."""
        with torch.profiler.record_function(_MARK):
            pass

    def __exit__(self, *raised: Any) -> None:
        self._profile.__exit__(*raised)
        events = self._profile.profiler.kineto_results.events()
        events = sorted(events, key=lambda event: event.start_ns())
        now = 0
        for event in events:
            if event.name() == _MARK:
                self.peaks.append(now)
                self.at_marks.append(now)
            elif event.name() == "[memory]":
                now += event.nbytes()
                self.peaks[-1] = max(self.peaks[-1], now)
        self.peak = max(self.peaks)


_MARK = "allocations: mark"

"""Detection of loss spikes: a step's loss against those of the steps before it."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perennial.config.spikes import SpikesSpec

_DEVIATION = 1.4826
"""A normal distribution's standard deviation is this many median absolute deviations."""
_LEAST_DEVIATION = 0.01
"""of the median: steps that happen to be alike must not make a usual loss look like a spike"""
_LEAST_HISTORY = 20


@dataclass(frozen=True)
class Problem:
    """A step's problem, as text; `finite` is false where the weights after it are no numbers."""

    text: str
    finite: bool


class SpikeWatch:
    """Window of the last steps' losses, by which the next one is judged."""

    def __init__(self, spec: SpikesSpec, losses: Iterable[float] = ()) -> None:
        self._threshold = spec.threshold
        self._losses = deque(losses, maxlen=spec.window)

    def judge(self, loss: float, gradient_norm: float) -> Problem | None:
        """Return what is wrong with the next step, or None, and add it to the window.

        A spike is a loss above the window's median by more than `threshold` deviations, where
        a deviation is 1.4826 median absolute deviations and at least 1% of the median. It takes
        20 steps (or a whole window that is shorter) to judge by.

        Args:
            loss: nats per token, the mean over the global batch.
            gradient_norm: before clipping; -1 from DeepSpeed stands for one that is not finite.
        """
        if not math.isfinite(loss):
            return Problem(f"the loss is {loss}", finite=False)
        if not math.isfinite(gradient_norm) or gradient_norm < 0:
            return Problem("the gradient's norm is not finite", finite=False)
        problem = self._spike(loss)
        self._losses.append(loss)
        return problem

    def _spike(self, loss: float) -> Problem | None:
        assert self._losses.maxlen is not None
        if len(self._losses) < min(_LEAST_HISTORY, self._losses.maxlen):
            return None
        median = statistics.median(self._losses)
        spread = statistics.median(abs(past - median) for past in self._losses)
        deviation = max(_DEVIATION * spread, _LEAST_DEVIATION * abs(median))
        rise = (loss - median) / deviation
        if rise <= self._threshold:
            return None
        return Problem(
            f"the loss is {loss:.4g}, {rise:.1f} deviations of {deviation:.2g} above the median "
            f"{median:.4g} of the {len(self._losses)} steps before it (training.spikes.threshold "
            f"is {self._threshold:g})",
            finite=True,
        )

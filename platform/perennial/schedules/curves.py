"""The curves by which a rate falls from `start` to `end` while a fraction x goes from 0 to 1.

Cosine, inverse square root and exponential: arXiv 2403.08763. 1-sqrt: Hägele et al., 2405.18392.
"""

from __future__ import annotations

import math
from typing import Literal

CooldownShape = Literal["cosine", "inverse-sqrt"]
AnnealShape = Literal["exponential", "1-sqrt", "linear", "cosine"]


def decay_rate(
    shape: CooldownShape | AnnealShape, start: float, end: float, x: float, alpha: float = 10.0
) -> float:
    """Return the rate at fraction `x` of a fall: `start` for x <= 0, `end` for x >= 1, exactly.

    Args:
        shape: form of the fall.
        start: rate at its begin.
        end: rate at its end, at most `start`.
        x: fraction of the fall that is over.
        alpha: time scale of "inverse-sqrt"; the other shapes have none.
    """
    if x <= 0.0:
        return start
    if x >= 1.0:
        return end
    if shape == "exponential":
        rate: float = start * (end / start) ** x
    else:
        rate = end + (start - end) * _remaining_share(shape, x, alpha)
    # Rounding may not take the rate out of [end, start].
    return min(max(rate, end), start)


def _remaining_share(
    shape: Literal["cosine", "inverse-sqrt", "1-sqrt", "linear"], x: float, alpha: float
) -> float:
    """Return the share of the way from `start` to `end` that remains at fraction `x`."""
    if shape == "cosine":
        return (1.0 + math.cos(math.pi * x)) / 2.0
    if shape == "1-sqrt":
        return 1.0 - math.sqrt(x)
    if shape == "linear":
        return 1.0 - x
    # The paper's 1 - h(x) / h(1) with h(x) = 1 / sqrt(1 + alpha x) - 1, written without the
    # difference: h(x) = -alpha x / (r (1 + r)) with r = sqrt(1 + alpha x), and alpha cancels.
    # So a small alpha gives a straight line where h itself would give 0 / 0.
    root, last_root = math.sqrt(1.0 + alpha * x), math.sqrt(1.0 + alpha)
    return 1.0 - x * (last_root / root) * ((1.0 + last_root) / (1.0 + root))

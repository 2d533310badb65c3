"""Checks of the fields of curves. A failed check raises a ValueError that names the field."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise


def check_steps(field: str, value: object, least: int) -> None:
    """Check that `value` is a whole number of optimizer steps, `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"{field} is {value!r}; it must be a whole number of optimizer steps, {least} or more"
        )


def check_number(field: str, value: object, *, zero_allowed: bool = False) -> None:
    """Check that `value` is a finite number above 0, or 0 where that is allowed."""
    # Comparisons, so that NaN fails too and an int of any size is no OverflowError.
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (0 < value <= sys.float_info.max or (zero_allowed and value == 0))
    ):
        return
    bound = "of 0 or more" if zero_allowed else "above 0"
    raise ValueError(f"{field} is {value!r}; it must be a finite number {bound}")


def check_order(**rates: float) -> None:
    """Check that the rates, named by their fields, do not fall from one to the next."""
    for (low_field, low), (high_field, high) in pairwise(rates.items()):
        if low > high:
            raise ValueError(
                f"{low_field} is {low!r}, above {high_field} = {high!r}; "
                f"it must be {high!r} or less"
            )


def check_warmup(start: float, peak: float, warmup_steps: int) -> None:
    """Check that a warmup from above 0 has steps, and does not begin above its peak."""
    check_number("warmup_start", start, zero_allowed=True)
    check_order(warmup_start=start, peak=peak)
    if start and not warmup_steps:
        raise ValueError(
            f"warmup_start is {start!r}, but the warmup has no steps; give schedule.warmup in steps"
        )


def check_choice(field: str, value: object, choices: Sequence[str]) -> None:
    """Check that `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{field} is {value!r}; it must be one of {', '.join(choices)}")


def check_step_from(step: int, first_step: int) -> None:
    """Check that `step` is not before `first_step`, where the curve begins."""
    if step < first_step:
        raise ValueError(f"step is {step}; this schedule begins at step {first_step}")

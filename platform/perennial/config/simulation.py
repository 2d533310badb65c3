"""The schema of a costs file: what was measured of a run, for `perennial simulate`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from perennial.fields import Section

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class CostsSpec(Section):
    """Seconds, and where they were measured."""

    source: Annotated[str, Field(min_length=1)]
    """where the numbers were measured: machine, model, date"""
    step_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """seconds of one optimizer step of the full group, above 0"""
    checkpoint_seconds: Seconds
    """seconds for which one checkpoint halts training, at least 0"""
    restart_seconds: Seconds
    """seconds from the loss of a worker to the next step of the others, at least 0"""

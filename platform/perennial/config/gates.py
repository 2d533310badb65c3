"""The run file's `gates` section: what a stage must keep to."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from perennial.fields import Section


class TaskGate(Section):
    """What a task's score must reach."""

    min: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """lowest score that passes"""
    max_drop: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """how far the score may lie below that of the checkpoint from which the stage started"""
    metric: str | None = None
    """the metric by its lm-eval name, such as `acc`; default the task's first"""

    @model_validator(mode="after")
    def _bounds_something(self) -> TaskGate:
        if self.min is None and self.max_drop is None:
            raise ValueError("it bounds nothing; give min, max_drop or both")
        return self


class GatesSpec(Section):
    """Bounds that a stage must keep, or the line stops until a person decides."""

    max_forgetting: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """nats per token that the held-out loss on any earlier corpus may be above what it was after
    that corpus's own stage"""
    max_adaptation: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """highest held-out loss on the stage's own corpora after it, each, in nats per token"""
    min_gain: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """nats per token by which the stage must lower the held-out loss on its own corpora, each"""
    tasks: dict[str, TaskGate] = Field(default_factory=dict)
    """lm-eval tasks (by name, suites, or folders that hold a task's YAML) that the stage's end must
    pass"""
    standard_errors: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """a bound is broken only by more than so many standard errors of what was measured"""

"""The section `gates` of the run file: bounds on what a stage may do to the losses and scores."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from perennial.config.corpora import CorpusPattern
from perennial.fields import FREE, Amount, Count, PathOrName, Section, parse_amount


class TaskGate(Section):
    """Bounds on the score of an lm-eval task: give min, max_drop or both."""

    min: Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, FREE] = None
    """lowest score that passes"""
    max_drop: Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, FREE] = None
    """most that the score may be below that of the model that the stage started from; not asked of
    a first stage from random weights"""
    metric: Annotated[str | None, FREE] = None
    """the metric by its lm-eval name, such as `acc`; default the task's first"""

    @model_validator(mode="after")
    def _bounds_something(self) -> TaskGate:
        if self.min is None and self.max_drop is None:
            raise ValueError("no bound is given; give min, max_drop or both")
        return self


class GatesSpec(Section):
    """Bounds for a stage, and what follows when it breaks one."""

    max_forgetting: Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, FREE] = None
    """most that the held-out loss on an earlier corpus may be above its value after that corpus's
    own stage, in nats per token; for a trunk from a stored model also that on a corpus without a
    stage so far, above the stored model's"""
    corpora: Annotated[tuple[CorpusPattern, ...], FREE] = ()
    """with max_forgetting, names of the corpora that it is asked of, or globs such as `"wiki-*"`;
    they are measured after every stage, whatever `evaluation.corpora`. Default: every corpus that
    is measured"""
    max_adaptation: Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, FREE] = (
        None
    )
    """highest held-out loss on any of the stage's own corpora after the stage, in nats per token"""
    min_gain: Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, FREE] = None
    """least decrease of the held-out loss on every one of the stage's own corpora, in nats per
    token; not asked of a first stage from random weights"""
    tasks: dict[PathOrName, TaskGate] = Field(default_factory=dict)
    """bounds by lm-eval task: a name, a suite, or a folder that holds a task's YAML; scored at the
    end of the stage"""
    standard_errors: Annotated[float, Field(ge=0, allow_inf_nan=False), FREE] = 0.0
    """a bound is broken only when the measurement exceeds it by more than this many of its standard
    errors"""
    on_broken: Annotated[Literal["stop", "retry-with-more-replay", "search"], FREE] = "stop"
    """stop (the run pauses until you decide), retry-with-more-replay (a stage that forgot too much
    is trained again from where it began, with twice its share of replay and at most half, within
    `max_retries` and `retry_tokens`) or search (trials of the stage at other shares of replay, and
    at lower peak rates where every stage has a peak of its own, within `max_trials` and
    `search_tokens`; the best one that holds the bounds becomes the stage). Where that does not
    help, and for any other bound, the run pauses"""
    max_retries: Annotated[Count, FREE] = 2
    """with retry-with-more-replay, how often a corpus's stage is trained again"""
    retry_tokens: Annotated[Amount | None, FREE] = None
    """with retry-with-more-replay, most tokens that a corpus's stage is trained again for, all
    retries together, such as `4M tokens`; a percentage is of the stage; default no limit"""
    max_trials: Annotated[Count, FREE] = 4
    """with search, most trials of one search; each trains the whole stage"""
    search_tokens: Annotated[Amount, FREE] = Field(default_factory=lambda: parse_amount("400%"))
    """with search, most tokens that its trials train together, such as `8M tokens`; a percentage is
    of the stage. `limits.search_tokens` holds too"""

    @model_validator(mode="after")
    def _corpora_have_a_bound(self) -> GatesSpec:
        if self.corpora and self.max_forgetting is None:
            raise ValueError(
                "corpora says of which corpora max_forgetting is asked, and there is none; "
                "give it, or remove corpora"
            )
        return self

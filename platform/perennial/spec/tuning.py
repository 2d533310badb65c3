"""The tuning file's schema: what to search for the next stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from perennial.spec.amounts import Amount
from perennial.spec.section import Count, Rate, Section, Share


class TuningSpec(Section):
    """A search over the constant rate and the replay share, off one trunk checkpoint."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    """name of the search: lower-case letters, digits, dot, dash, underscore; at most 64"""
    run: Annotated[str, Field(min_length=1)]
    """the run file whose next stage is searched"""
    after: str | None = None
    """the stage off whose end every trial branches; default the trunk's end"""
    corpus: str | None = None
    """the corpus that the trials train; default the next one that has landed"""
    budget: Amount
    """tokens of one trial, such as `100k tokens` or `20%` of the corpus"""
    eta_const: Annotated[tuple[Rate, ...], Field(min_length=1)]
    """constant learning rates to try, each above 0"""
    replay: Annotated[tuple[Share, ...], Field(min_length=1)]
    """replay shares to try, each from 0 to 1"""
    concurrent: Count = 1
    """trials that run at the same time"""

"""The schema of the study file: arms that differ, seeds, and claims that their results decide."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import Field, model_validator

from perennial.config.cron import Duration
from perennial.fields import OutputPath, PathText, Section

Finite = Annotated[float, Field(allow_inf_nan=False)]
ArmName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
Overrides = dict[str, Any]
_MEASURE = re.compile(r"average|saved|(loss|forgetting)/[A-Za-z0-9._-]+")
_OWN = ("name", "store", "inbox", "seed", "corpora.borrow")
"""fields of the run file that the study itself decides"""


class PaperSpec(Section):
    """A number in a paper, beside which the study's own is shown."""

    number: Annotated[str, Field(min_length=1)]
    """the number as the paper has it, such as `+0.01` or `2.23 and 2.24`"""
    source: Annotated[str, Field(min_length=1)]
    """where the paper has it, such as `arXiv 2403.08763, table 2`"""


class StudyReleaseSpec(Section):
    """A release of every run of an arm."""

    overrides: Overrides = Field(default_factory=dict)
    """values of the run file's section `release`, by their dotted names, such as `release.anneal:
    15%`"""
    after: str | None = None
    """the stage from which it is annealed, or STAGE@STEP; default the trunk's end"""
    average: str | None = None
    """`last:5` makes the release the average of the trunk's last checkpoints, in place of an
    anneal, as `perennial release --average` does; the run file's `training.keep_last` keeps them"""

    @model_validator(mode="after")
    def _of_a_release(self) -> StudyReleaseSpec:
        for name in self.overrides:
            if not name.startswith("release."):
                raise ValueError(
                    f"{name} is no field of a release; give it as an override of the arm"
                )
        if self.average is not None and self.overrides:
            raise ValueError("an average is not annealed; leave out its overrides")
        return self


class ArmSpec(Section):
    """A way to train: the base run file with overrides, once for every seed."""

    about: str = ""
    """what the arm is, in words for the page"""
    overrides: Overrides = Field(default_factory=dict)
    """values of the run file by their dotted names, such as `replay.share: 0.05`; each replaces the
    whole field"""
    releases: dict[ArmName, StudyReleaseSpec] = Field(default_factory=dict)
    """releases of the arm's trunk, by name. Claims and the page name one as ARM/RELEASE, and the
    end of the trunk as ARM"""
    value: Finite = 0.0
    """arms of a higher value come first; those of one value take turns, seed by seed"""

    @model_validator(mode="after")
    def _leaves_what_the_study_decides(self) -> ArmSpec:
        for name in self.overrides:
            if any(name == own or name.startswith(f"{own}.") for own in _OWN):
                raise ValueError(f"{name} is decided by the study; remove it")
        return self


class ClaimSpec(Section):
    """A statement about a measure of an arm, or its difference from another arm's.

    It holds where the whole 95% interval over the seeds lies within the bounds, does not hold where
    the whole interval lies outside, and is not decided otherwise, as with a single seed.
    """

    says: Annotated[str, Field(min_length=1)]
    """the claim in words"""
    arm: str
    """what it is about: ARM, or ARM/RELEASE"""
    against: str | None = None
    """an ARM or ARM/RELEASE whose measure is subtracted, seed by seed; default nothing is"""
    measure: Annotated[str, Field(pattern=rf"^({_MEASURE.pattern})$")] = "average"
    """average (held-out loss over all corpora, each counting the same), loss/CORPUS,
    forgetting/CORPUS (rise since the corpus's own stage), all in nats per token; or saved (share of
    the tokens of retraining at every arrival that was not trained)"""
    at_least: Finite | None = None
    """lower bound"""
    at_most: Finite | None = None
    """upper bound"""
    paper: PaperSpec | None = None
    """what a paper found"""

    @model_validator(mode="after")
    def _has_a_bound(self) -> ClaimSpec:
        low, high = self.bounds
        if math.isinf(low) and math.isinf(high):
            raise ValueError("a claim has no bound; give at_least, at_most or both")
        if low > high:
            raise ValueError("at_least is above at_most; nothing lies between them")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the lower and the upper bound; infinite where there is none."""
        low = -math.inf if self.at_least is None else self.at_least
        return low, math.inf if self.at_most is None else self.at_most


class StudySpec(Section):
    """A study: a base run file, arms that differ, seeds and claims."""

    name: ArmName
    """name of the study: lower-case letters, digits, dash, underscore; at most 32"""
    about: str = ""
    """what is asked, in words for the page"""
    place: Annotated[OutputPath, Field(min_length=1)]
    """folder or bucket's url in which every run of the study has its store"""
    run: Annotated[PathText, Field(min_length=1)]
    """path of the base run file; its inbox has the corpora of all arms"""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)]
    """seeds of every arm: of the weights, the shuffle and the held-out split"""
    arms: Annotated[dict[ArmName, ArmSpec], Field(min_length=1)]
    """the arms, by name: lower-case letters, digits, dash, underscore; at most 32"""
    claims: tuple[ClaimSpec, ...] = ()
    """what the results decide"""
    budget: Duration | None = None
    """time that all runs together may take, those side by side added up; a run that does not fit is
    listed as not run. Default no limit"""
    tokens_per_second: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """speed of a run, all its work counted, to estimate with before one is done; default none"""
    page: OutputPath | None = None
    """file that the page is written to, its pictures beside it; default `study.md` in the place"""
    results: OutputPath | None = None
    """file that keeps what runs came to, such as `gap.results.json`: committed beside the study
    file, it lets another machine go on with the runs that are missing. Default none"""

    @model_validator(mode="after")
    def _seeds_are_different(self) -> StudySpec:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds has one twice; name each once")
        return self

    @model_validator(mode="after")
    def _claims_are_about_arms(self) -> StudySpec:
        known = self.contenders
        for claim in self.claims:
            for name in (claim.arm, *([claim.against] if claim.against is not None else [])):
                if name not in known:
                    raise ValueError(
                        f"the claim {claim.says!r} names {name}; known are {', '.join(known)}"
                    )
        return self

    @property
    def contenders(self) -> list[str]:
        """Return the names of all models that are compared: ARM and ARM/RELEASE."""
        names = []
        for arm, spec in self.arms.items():
            names += [arm, *(f"{arm}/{release}" for release in spec.releases)]
        return names

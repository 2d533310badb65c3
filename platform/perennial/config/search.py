"""The schema of the tuning file: a search for settings of the next stage, or for layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from perennial.fields import Amount, Count, PathText, PositiveAmount, Section
from perennial.mixture import REPLAY_POLICIES, PolicyName

OBJECTIVES = ("adaptation", "forgetting")


@dataclass(frozen=True)
class Choices:
    """Values to try."""

    values: tuple[float, ...]


@dataclass(frozen=True)
class Span:
    """Any value from `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """The settings that one trial tries.

    eta: the constant rate of an infinite or constant schedule, the peak of a cosine or wsd one.
    replay: share of the stage's batches that is replay, 0..1.
    weighting: how the share is split over earlier corpora.
    anneal: amount such as `12%` by which the trial is annealed before it is measured; "" is none.
    seed: 0 trains what the stage would; another number trains other documents of the corpus.
    """

    eta: float
    replay: float
    weighting: str
    anneal: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """Return a short name, in characters that a key of a store may have."""
        parts = [f"eta{self.eta:.4g}", f"replay{self.replay:.4g}", self.weighting]
        parts += [f"anneal{self.anneal.replace('%', 'pc').replace(' ', '')}"] if self.anneal else []
        parts += [f"seed{self.seed}"] if self.seed else []
        return "-".join(parts)

    def fragment(self, corpus: str, rate: str) -> dict[str, Any]:
        """Return the part of a run file that makes a stage use this point.

        Args:
            corpus: corpus of the stage.
            rate: key of the section `schedule` that `eta` is the value of.
        """
        release = {"release": {"anneal": self.anneal}} if self.anneal else {}
        return {
            "schedule": {rate: self.eta},
            "replay": {"weighting": self.weighting},
            "stages": {"corpora": {corpus: {"replay": self.replay}}},
            **release,
        }


ChildInit = Literal["inherited", "grown", "random"]


@dataclass(frozen=True)
class Child:
    """A model of fewer layers than the trunk's, which a trial of an Inheritune search trains.

    layers: number of its layers.
    init: what it begins with: the reference's first layers (inherited), the trained child before it
        with the reference's next layers (grown), or random weights.
    subset: amount such as `5%` of the corpus that it is trained on; "" is what the reference was.
    epochs: how often it is trained on that; 0 where there is none.
    seed: 0 trains in the reference's order; another number begins elsewhere in it.
    """

    layers: int
    init: ChildInit
    subset: str = ""
    epochs: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        """Return a short name, in characters that a key of a store may have."""
        parts = [f"{self.layers}layers", self.init]
        if self.subset:
            parts += [f"{self.subset.replace('%', 'pc').replace(' ', '')}x{self.epochs}"]
        parts += [f"seed{self.seed}"] if self.seed else []
        return "-".join(parts)


def _axis(value: Any, *, zero: bool) -> Choices | Span:
    if isinstance(value, Choices | Span):
        return value
    bound = "from 0 to 1" if zero else "above 0 and at most 1"
    form = f"give numbers {bound}, as a list or as {{low: NUMBER, high: NUMBER}}"
    if isinstance(value, Mapping):
        if set(value) != {"low", "high"}:
            raise ValueError(f"a range has low and high, not {', '.join(map(str, value))}; {form}")
        low, high = (_number(value[end], zero, form) for end in ("low", "high"))
        if low >= high:
            raise ValueError(f"the range {low:g} to {high:g} is empty; give low below high")
        return Span(low, high)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r} is neither a list nor a range; {form}")
    if not value:
        raise ValueError(f"there is nothing to try; {form}")
    numbers = tuple(_number(item, zero, form) for item in value)
    if len(set(numbers)) < len(numbers):
        raise ValueError("a value is there twice; name every value once")
    return Choices(numbers)


def _number(value: Any, zero: bool, form: str) -> float:
    number = float(value) if isinstance(value, int | float | str) and _is_number(value) else None
    if number is None or not 0 <= number <= 1 or (number == 0 and not zero):
        raise ValueError(f"{value!r} is refused; {form}")
    return number


def _is_number(value: int | float | str) -> bool:
    """Return whether a value is a finite number; YAML reads 1e-3, without a point, as text."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except ValueError:
        return False


def _shown(axis: Choices | Span) -> Any:
    return list(axis.values) if isinstance(axis, Choices) else asdict(axis)


_Shown = PlainSerializer(_shown)
_NUMBER = {"type": ["number", "string"]}
_AXIS = WithJsonSchema(
    {
        "$comment": "list of numbers, or {low: , high: }",
        "anyOf": [
            {"type": "array", "items": _NUMBER},
            {
                "type": "object",
                "properties": {"low": _NUMBER, "high": _NUMBER},
                "required": ["low", "high"],
                "additionalProperties": False,
            },
        ],
    }
)
Rates = Annotated[Choices | Span, BeforeValidator(partial(_axis, zero=False)), _Shown, _AXIS]
Shares = Annotated[Choices | Span, BeforeValidator(partial(_axis, zero=True)), _Shown, _AXIS]


def _check_unweighted(name: str) -> str:
    if REPLAY_POLICIES[name].uses_weights:
        raise PydanticCustomError("weighted", "it needs weights, which a search does not vary")
    return name


UnweightedPolicy = Annotated[
    PolicyName,
    AfterValidator(_check_unweighted),
    WithJsonSchema(
        {
            "type": "string",
            "enum": [name for name in REPLAY_POLICIES if not REPLAY_POLICIES[name].uses_weights],
        }
    ),
]


class HalvingSpec(Section):
    """Successive halving: trials that lose are stopped early."""

    first: PositiveAmount
    """length at which all trials are compared for the first time, such as `20k tokens`"""
    factor: Annotated[int, Field(ge=2)] = 3
    """one trial in this many goes on after a comparison, and trains this many times as long"""


class InherituneSpec(Section):
    """Search for the fewest first layers of the trunk's model that keep its loss.

    The search is Inheritune's (arXiv 2404.08634). Its reference is the end of the trunk's first
    stage. A child of the reference's first layers is trained as the reference was, on the same
    batches at the same learning rates; while its held-out loss is above the reference's, one of
    more layers is tried.
    """

    first: Count | None = None
    """layers of the first child, such as `4`; default half of the reference's"""
    step: Count = 2
    """layers by which the next child is larger"""
    last: Count | None = None
    """layers of the largest child, such as `6`; default one less than the reference's"""
    grow_from: Literal["reference", "child"] = "reference"
    """what a larger child begins with: reference (its first layers again, as in the paper) or child
    (the trained child before it, with the reference's next layers behind its own)"""
    random: bool = True
    """true also trains a child of each size from random weights, to compare with"""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """nats per token by which the loss of a child at parity may lie above the reference's"""
    subset: PositiveAmount | None = None
    """part of the reference's corpora that children are trained on, such as `5%` or `1M tokens`;
    needs `epochs`. Default all that the reference was trained on"""
    epochs: Count | None = None
    """how often children are trained on `subset`, such as `8`"""

    @model_validator(mode="after")
    def _subset_has_epochs(self) -> InherituneSpec:
        if (self.subset is None) != (self.epochs is None):
            raise ValueError("subset and epochs go together; give both, or neither")
        if self.subset is not None and self.subset.unit == "steps":
            raise ValueError("subset is a percentage or a number of tokens, not of steps")
        if None not in (self.first, self.last) and self.first > self.last:  # type: ignore[operator]
            raise ValueError(f"first {self.first} is above last {self.last}; use first <= last")
        return self


_OF_SETTINGS = (
    *("corpus", "budget", "eta_const", "eta_max", "replay", "weighting", "anneal"),
    *("objectives", "searcher", "trials", "halving"),
)
"""Keys of a search for the settings of a stage, which a search for layers does not have."""


class TuningSpec(Section):
    """A search: for the settings of the next stage, or for the layers of a smaller model.

    Its trials are branches: a search for settings tries short ones off one trunk checkpoint, and
    `inheritune` whole ones of smaller models.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    """name of the search: lower-case letters, digits, dot, dash, underscore; at most 64"""
    run: Annotated[PathText, Field(min_length=1)]
    """path of the run file whose next stage is searched"""
    after: str | None = None
    """checkpoint that every trial branches off: a stage, for its end, or STAGE@STEP; default the
    trunk's end. Of `inheritune` the trunk's first stage, which is also its default"""
    corpus: str | None = None
    """the corpus that the trials train; default the next one that has landed"""
    budget: PositiveAmount | None = None
    """most that a trial trains, new and replayed: `100k tokens`, or `20%` of the stage; required
    but with `inheritune`"""
    eta_const: Rates | None = None
    """constant learning rates to try, of an infinite or constant schedule: a list, or {low: , high:
    }"""
    eta_max: Rates | None = None
    """peak learning rates to try, of a cosine or wsd schedule: a list, or {low: , high: }"""
    replay: Shares | None = None
    """replay shares to try, from 0 to 1: a list, or {low: , high: }"""
    weighting: tuple[UnweightedPolicy, ...] | None = None
    """ways of splitting the replayed share over earlier corpora: seen, uniform, recent"""
    anneal: tuple[Amount, ...] | None = None
    """anneals to try, such as `12%`: a trial is annealed as a release would be, then measured;
    default measures the trial without an anneal"""
    objectives: tuple[str, ...] = OBJECTIVES
    """two of: adaptation (loss on the new corpus), forgetting (mean rise of the loss on the earlier
    corpora), forgetting/CORPUS (rise on one of them); in nats per token, less is better"""
    searcher: Literal["grid", "random", "optuna", "advisor"] = "grid"
    """grid (every combination), random, optuna (multi-objective TPE; needs perennial[optuna]) or
    advisor (proposes points by a law that is fitted to the finished trials)"""
    trials: Count | None = None
    """number of trials, for every searcher but grid"""
    halving: HalvingSpec | None = None
    """early stopping of trials that lose; default every trial trains the whole budget"""
    seeds: Count = 1
    """number of trials per point, on different documents of the corpus (per child, with the
    documents in another order and other random weights); more of them show how much of a difference
    is chance"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """seed of the searcher's choices and of the bootstrap"""
    concurrent: Count = 1
    """most trials that run at the same time"""
    inheritune: InherituneSpec | None = None
    """a search for layers in place of settings; `{}` takes its defaults. Default: none"""

    @model_validator(mode="after")
    def _layers_or_settings(self) -> TuningSpec:
        if self.inheritune is None:
            if self.budget is None:
                raise ValueError("budget is missing; give the length of a trial, such as `20%`")
            return self
        for name in _OF_SETTINGS:
            if getattr(self, name) != TuningSpec.model_fields[name].get_default():
                raise ValueError(
                    f"inheritune searches the number of layers, and {name} belongs to a search for "
                    f"settings; remove {name}, or inheritune"
                )
        return self

    @model_validator(mode="after")
    def _something_to_search(self) -> TuningSpec:
        if self.eta_const is not None and self.eta_max is not None:
            raise ValueError(
                "eta_const and eta_max are both given; give the one of the run's schedule: "
                "eta_const (infinite, constant) or eta_max (cosine, wsd)"
            )
        axes = (self.eta_const, self.eta_max, self.replay, self.weighting, self.anneal)
        if not any(axes) and self.inheritune is None:
            raise ValueError(
                "there is nothing to search; give values for eta_const, eta_max, replay, weighting "
                "or anneal"
            )
        return self

    @model_validator(mode="after")
    def _searcher_has_what_it_needs(self) -> TuningSpec:
        axes = ("eta_const", "eta_max", "replay")
        spans = [name for name in axes if isinstance(getattr(self, name), Span)]
        if self.searcher == "grid":
            if spans:
                raise ValueError(
                    f"a grid has no ranges, and {spans[0]} is one; list its values, or use another "
                    "searcher"
                )
            if self.trials is not None:
                raise ValueError(
                    "trials is not used with searcher grid, which tries every combination; "
                    "remove it, or use another searcher"
                )
        elif self.trials is None:
            raise ValueError(f"searcher {self.searcher} needs trials; give a number, such as 8")
        if self.searcher in ("optuna", "advisor") and self.halving is not None:
            raise ValueError(
                f"halving is not used with searcher {self.searcher}, which learns from whole "
                "trials; remove it, or use grid or random"
            )
        return self

    @model_validator(mode="after")
    def _two_objectives(self) -> TuningSpec:
        known = "adaptation, forgetting or forgetting/CORPUS"
        for objective in self.objectives:
            if objective not in OBJECTIVES and not objective.startswith("forgetting/"):
                raise ValueError(f"there is no objective {objective!r}; give two of {known}")
        if len(set(self.objectives)) != 2 or len(self.objectives) != 2:
            raise ValueError(
                f"objectives are two that trade against each other, not "
                f"{', '.join(self.objectives) or 'none'}; give two of {known}"
            )
        return self

    @property
    def rate(self) -> Choices | Span | None:
        """Return the learning rates to try, of whichever key the schedule has."""
        return self.eta_const or self.eta_max

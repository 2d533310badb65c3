"""How the replayed share of a stage is split over the earlier corpora: pure integer arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

Weighting = Literal["seen", "uniform", "recent", "fixed"]


@dataclass(frozen=True)
class ReplayRule:
    """How much of a stage is replay, and of what.

    share: part of the budget that is drawn from earlier corpora, 0..1.
    weighting: what an earlier corpus's part of it is in proportion to. `seen`: the sequences that
        the trunk has seen of it, replays included (arXiv 2403.08763, configs of the 3 x 100B
        experiment). `uniform`: equal parts. `recent`: 1 for each corpus of the last stage, a half
        for those of the one before, a quarter for those before that, and so on. `fixed`:
        `weights`; a corpus without one is not replayed.
    weights: by corpus, at least 0, for `fixed` alone; corpora to come may be named.
    max_epochs: how often any sequence may be replayed over the trunk's life; None is no limit.
    retired: corpora that are not replayed any more, whatever the weighting.
    """

    share: float = 0.0
    weighting: Weighting = "seen"
    weights: Mapping[str, float] = field(default_factory=dict)
    max_epochs: int | None = None
    retired: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ReplayRule:
        """The inverse of `dataclasses.asdict`, from JSON."""
        return cls(**{**data, "retired": tuple(data.get("retired", ()))})


@dataclass(frozen=True)
class Earlier:
    """What the trunk has done with an earlier corpus.

    stage: number of the stage that it was new in.
    seen: sequences trained, replays included.
    replayed: sequences replayed.
    extent: different sequences trained; what is replayed over and over.
    """

    stage: int
    seen: int
    replayed: int
    extent: int


def split_replay(rule: ReplayRule, total: int, earlier: Mapping[str, Earlier]) -> dict[str, int]:
    """Sequences to replay of each earlier corpus (in stage order): `total` by the rule's weights.

    What a corpus at its cap cannot give goes to the others in proportion to their weights; the
    sum is below `total` only when none is left.
    """
    weights = {name: weight for name, weight in _weights(rule, earlier).items() if weight}
    if rule.max_epochs is None:
        return apportion(total, weights)
    room = {
        name: max(0, rule.max_epochs * earlier[name].extent - earlier[name].replayed)
        for name in weights
    }
    counts: dict[str, int] = {}
    while weights:
        parts = apportion(total - sum(counts.values()), weights)
        full = {name: room[name] for name, part in parts.items() if part > room[name]}
        if not full:
            return counts | parts
        counts |= full
        weights = {name: weight for name, weight in weights.items() if name not in full}
    return counts


def apportion(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers in proportion to the weights that add up to `total` (largest remainders)."""
    sum_of_weights = sum(weights.values())
    if not sum_of_weights:
        return dict.fromkeys(weights, 0)
    counts = {name: total * weight // sum_of_weights for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: -(total * weights[name] % sum_of_weights))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _weights(rule: ReplayRule, earlier: Mapping[str, Earlier]) -> dict[str, int]:
    if rule.weighting == "seen":
        return {name: corpus.seen for name, corpus in earlier.items()}
    if rule.weighting == "uniform":
        return dict.fromkeys(earlier, 1)
    if rule.weighting == "recent":
        stages = sorted({corpus.stage for corpus in earlier.values()})
        return {name: 1 << stages.index(corpus.stage) for name, corpus in earlier.items()}
    # As they are written, so that 0.1 : 0.2 is 1 : 2.
    exact = {name: Fraction(str(rule.weights.get(name, 0))) for name in earlier}
    scale = math.lcm(*(weight.denominator for weight in exact.values()))
    return {name: int(weight * scale) for name, weight in exact.items()}

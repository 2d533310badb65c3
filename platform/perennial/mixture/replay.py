"""The rule of replay: how much of a stage is drawn from earlier corpora, and of which."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from perennial.fields import JOIN, Count, Section, Share, Weight, unknown_name
from perennial.mixture.groups import fill_group, group_of, join_histories
from perennial.mixture.policies import (
    REPLAY_POLICIES,
    CorpusHistory,
    as_written,
    replay_policy,
)

PartKey = tuple[str, str | None]
"""a corpus and a part of it; None for a corpus without parts"""
KeyT = TypeVar("KeyT", bound=Hashable)


def _check_policy(name: str) -> str:
    if name not in REPLAY_POLICIES:
        REPLAY_POLICIES.load_plugins()
    if name not in REPLAY_POLICIES:
        raise unknown_name(REPLAY_POLICIES)
    return name


PolicyName = Annotated[
    str,
    AfterValidator(_check_policy),
    WithJsonSchema({"type": "string", "enum": list(REPLAY_POLICIES)}),
]


GroupPattern = Annotated[str, Field(pattern=r"^[a-z0-9?][a-z0-9._?-]*$")]
"""the beginning of corpora's names; `?` stands for any one character"""
AUTO: Literal["auto"] = "auto"
"""a share that is decided when the stage begins"""
ShareOrAuto = Share | Literal["auto"]


class ReplaySpec(Section):
    """Compute-equivalent replay (arXiv 2403.08763, section 4)."""

    share: Annotated[ShareOrAuto, JOIN] = 0.05
    """share of every batch drawn from earlier corpora, from 0 to 1; 0.05 for a weak shift, 0.25 for
    a strong one; or auto, which measures the shift before a stage begins and takes a share between
    these two"""
    weighting: Annotated[PolicyName, JOIN] = "seen"
    """how the share is split over earlier corpora: seen (in proportion to what the trunk has seen
    of each, the paper's rule), uniform (equal parts), recent (the latest twice as much as the one
    before it, and so on) or fixed (by `weights`)"""
    weights: Annotated[dict[str, Weight], JOIN] = Field(default_factory=dict)
    """with `weighting: fixed`, a number by corpus name, at least 0; a corpus without one is not
    replayed"""
    groups: Annotated[tuple[GroupPattern, ...], JOIN] = ()
    """beginnings of corpora's names, with `?` for any character: what one matches of a name is a
    group, which has a part of the share as one corpus has, and whose corpora are replayed one after
    the other. `news-` makes one group, `news-????-??` one of each month; the first that matches
    counts. Default: each corpus has its own part"""
    minimum: Annotated[Share, JOIN] = 0.0
    """least part of the replay share for each corpus that is replayed, from 0 to 1: with 0.1 each
    has at least a tenth of it, and the others have the rest by their weights; where so many are
    replayed that these do not fit, all have equal parts"""
    max_epochs: Annotated[Count | None, JOIN] = None
    """how often any sequence may be replayed over the trunk's life, at least 1; what the cap
    forbids goes to the other corpora, and to new tokens when all are capped; default no limit"""

    @model_validator(mode="after")
    def _check_weights(self) -> ReplaySpec:
        needed = REPLAY_POLICIES[self.weighting].uses_weights
        if needed and not any(self.weights.values()):
            raise ValueError(
                f"weighting {self.weighting} needs weights; give `weights: {{corpus: number}}` "
                "with one above 0"
            )
        if not needed and self.weights:
            raise ValueError(
                f"weights are not used with weighting {self.weighting}; "
                "remove them, or set weighting: fixed"
            )
        return self


class ReplayRule(ReplaySpec):
    """The section `replay` as it holds for one stage; it is stored with the stage's mix."""

    share: Share = 0.0
    """share of every batch drawn from earlier corpora, from 0 to 1"""
    retired: tuple[str, ...] = ()
    """corpora that are not replayed any more, whatever the weighting"""
    proxies: dict[str, int | dict[str, int]] = Field(default_factory=dict)
    """training sequences of the corpora that are replayed without a stage of their own, or of
    their parts"""

    @classmethod
    def resolve(
        cls,
        spec: ReplaySpec,
        retired: Collection[str],
        proxies: Mapping[str, int | dict[str, int]] | None = None,
        share: float | None = None,
    ) -> ReplayRule:
        """Return the rule of a stage from the settings of that stage.

        Args:
            spec: the settings.
            retired: corpora that a user retired from replay.
            proxies: training sequences of the proxy corpora, or of their parts; default those of
                `spec`, if any.
            share: that of the stage; default that of `spec`.

        Raises:
            ValueError: neither is a number.
        """
        own: dict[str, Any] = {} if proxies is None else {"proxies": dict(proxies)}
        own |= {} if share is None else {"share": share}
        settings = {**dict(spec), "retired": tuple(retired), **own}
        if settings["share"] == AUTO:
            raise ValueError("the share of replay is not decided yet")
        return cls.model_construct(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that ledgers and checkpoints hold."""
        # Without a proxy, minimum or group as versions before these were known wrote it.
        unused = {name for name in ("proxies", "minimum", "groups") if not getattr(self, name)}
        groups = {"groups": list(self.groups)} if self.groups else {}
        return self.model_dump(exclude=unused) | {"retired": list(self.retired)} | groups

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ReplayRule:
        """Return the rule that `to_dict` wrote.

        Unchecked: a stored stage must be readable where the plug-in of its policy is missing.
        """
        lists = {name: tuple(data.get(name, ())) for name in ("retired", "groups")}
        return cls.model_construct(**{**data, **lists})


def split_replay(
    rule: ReplayRule, total: int, earlier: Mapping[PartKey, CorpusHistory]
) -> dict[PartKey, int]:
    """Return the sequences to replay of each earlier corpus, by the rule's weights.

    A group has the weight of one corpus, and is filled member by member. A corpus of parts is
    divided over them in proportion to what was seen of each. What a corpus (or part, or group) at
    its cap cannot give goes to the others in proportion to their weights; the sum is below `total`
    only when none is left.

    Args:
        rule: policy, weights, groups and cap.
        total: sequences to replay.
        earlier: what was trained so far, by corpus and part, in the order of the stages.
    """
    members: dict[str, dict[PartKey, CorpusHistory]] = {}
    alone: dict[PartKey, CorpusHistory] = {}
    for key, known in earlier.items():
        group = group_of(rule.groups, key[0])
        if group is None:
            alone[key] = known
        else:
            members.setdefault(group, {})[key] = known
    joined: dict[PartKey, CorpusHistory]
    joined = {(group, None): join_histories([*its.values()]) for group, its in members.items()}
    room = {key: _room(rule, [known]) for key, known in alone.items()}
    room |= {(group, None): _room(rule, [*its.values()]) for group, its in members.items()}
    counts = _split(rule, total, {**alone, **joined}, room)
    for group, its in members.items():
        counts |= fill_group(counts.pop((group, None), 0), its, rule.max_epochs)
    return counts


def _room(rule: ReplayRule, members: Sequence[CorpusHistory]) -> int:
    """Return how many sequences the cap allows to replay; 0 where there is none."""
    return sum(max(0, (rule.max_epochs or 0) * its.extent - its.replayed) for its in members)


def _split(
    rule: ReplayRule,
    total: int,
    earlier: Mapping[PartKey, CorpusHistory],
    room: Mapping[PartKey, int],
) -> dict[PartKey, int]:
    """Return the sequences of each corpus, part or group: arguments as for `split_replay`.

    room: with a cap, the most that each of them can give.
    """
    weights = _weigh(rule, earlier)
    if rule.max_epochs is None:
        return apportion(total, weights)
    counts: dict[PartKey, int] = {}
    while weights:
        parts = apportion(total - sum(counts.values()), weights)
        full = {key: room[key] for key, part in parts.items() if part > room[key]}
        if not full:
            return counts | parts
        counts |= full
        weights = {key: weight for key, weight in weights.items() if key not in full}
    return counts


def _weigh(rule: ReplayRule, earlier: Mapping[PartKey, CorpusHistory]) -> dict[PartKey, int]:
    """Return the weights of corpora and parts that are above 0."""
    by_corpus: dict[str, list[CorpusHistory]] = {}
    for (corpus, _), known in earlier.items():
        by_corpus.setdefault(corpus, []).append(known)
    whole = {corpus: CorpusHistory.sum(parts) for corpus, parts in by_corpus.items()}
    given = replay_policy(rule.weighting).weigh(whole, rule.weights)
    weights = raise_to_minimum(given, as_written(rule.minimum))
    scale = math.lcm(*(whole[corpus].seen for corpus, part in earlier if part is not None), 1)
    shares = {
        (corpus, part): weights.get(corpus, 0)
        * (scale if part is None else known.seen * scale // whole[corpus].seen)
        for (corpus, part), known in earlier.items()
    }
    return {key: weight for key, weight in shares.items() if weight}


def raise_to_minimum(weights: Mapping[KeyT, int], minimum: Fraction) -> dict[KeyT, int]:
    """Return weights in which none above 0 is less than a part of their sum.

    The others keep their proportions to each other. Where the minimum is more than an equal part,
    all are equal.

    Args:
        weights: whole numbers of 0 or more.
        minimum: part of the sum, from 0 to 1.
    """
    taken = {name: weight for name, weight in weights.items() if weight}
    if not minimum or not taken:
        return dict(weights)
    if minimum * len(taken) >= 1:
        return {name: int(bool(weight)) for name, weight in weights.items()}
    parts, parts_of = minimum.numerator, minimum.denominator
    low: set[KeyT] = set()
    while True:
        rest = sum(weight for name, weight in taken.items() if name not in low)
        left = parts_of - parts * len(low)  # of `parts_of` parts, for the others
        below = {n for n, w in taken.items() if n not in low and w * left < parts * rest}
        if not below:
            return {
                name: parts * rest if name in low else weight * left
                for name, weight in weights.items()
            }
        low |= below


def apportion(total: int, weights: Mapping[KeyT, int]) -> dict[KeyT, int]:
    """Return whole numbers in proportion to the weights that add up to `total`.

    What the rounding leaves over goes to the largest remainders.

    Args:
        total: sum of the result; all are 0 where no weight is above 0.
        weights: whole numbers of 0 or more.
    """
    sum_of_weights = sum(weights.values())
    if not sum_of_weights:
        return dict.fromkeys(weights, 0)
    counts = {name: total * weight // sum_of_weights for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: -(total * weights[name] % sum_of_weights))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts

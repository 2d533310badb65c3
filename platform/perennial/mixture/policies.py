"""Policies that split the replayed share of a stage over the earlier corpora.

A policy gives every earlier corpus a weight; the share is split in proportion to the weights. A
plug-in's entry point names a subclass of `ReplayPolicy`; its name is a value of `replay.weighting`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from perennial.errors import InputError
from perennial.registry import Registry


@dataclass(frozen=True)
class CorpusHistory:
    """The trunk's use of an earlier corpus.

    stage: number of the stage that it was new in; -1 for a proxy corpus, which has none.
    seen: sequences trained, replays included; those of a proxy corpus once more.
    replayed: sequences replayed.
    extent: different sequences trained; what is replayed over and over.
    """

    stage: int
    seen: int
    replayed: int
    extent: int

    @classmethod
    def sum(cls, parts: Sequence[CorpusHistory]) -> CorpusHistory:
        """Return the history of a corpus from those of its parts, which were new together."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            parts[0].stage,
            sum(part.seen for part in parts),
            sum(part.replayed for part in parts),
            sum(part.extent for part in parts),
        )


class ReplayPolicy(ABC):
    """Base of a replay policy; the first line of a subclass's docstring is its documentation."""

    uses_weights: ClassVar[bool] = False
    """true for a policy that reads `replay.weights`; for any other they are refused"""

    @staticmethod
    @abstractmethod
    def weigh(earlier: Mapping[str, CorpusHistory], weights: Mapping[str, float]) -> dict[str, int]:
        """Return a whole number of 0 or more for each earlier corpus; 0 does not replay it.

        Whole numbers, so that the plan is exact and equal on every machine.

        Args:
            earlier: what was trained so far, by corpus, in the order of the stages.
            weights: `replay.weights` of the run file; corpora to come may be among them.
        """


REPLAY_POLICIES: Registry[type[ReplayPolicy]] = Registry(
    "replay policy", "perennial.replay_policies"
)
"""Replay policies by name. A plug-in's entry point names a subclass of `ReplayPolicy`."""


def replay_policy(name: str) -> type[ReplayPolicy]:
    """Return a registered policy.

    Raises:
        InputError: there is none of this name, because it is misspelt or its plug-in is missing.
    """
    if name not in REPLAY_POLICIES:
        # Worker processes plan a stage without having loaded a run file.
        REPLAY_POLICIES.load_plugins()
    if name not in REPLAY_POLICIES:
        raise InputError(
            "run file",
            "replay.weighting",
            f"there is no replay policy {name!r}; known are {', '.join(REPLAY_POLICIES)}",
            "correct it, or install the package that brings it",
            code="plugin-missing",
        )
    return REPLAY_POLICIES[name]


def as_written(weight: float) -> Fraction:
    """Return a weight as a user wrote it, so that 0.1 : 0.2 is 1 : 2."""
    return Fraction(str(weight))


@REPLAY_POLICIES.register("seen")
class SeenPolicy(ReplayPolicy):
    """in proportion to the sequences that the trunk has seen of each, replays included"""

    # arXiv 2403.08763, configurations of the 3 x 100B experiment.

    @staticmethod
    def weigh(earlier: Mapping[str, CorpusHistory], weights: Mapping[str, float]) -> dict[str, int]:
        """Return the sequences seen of each corpus."""
        return {name: corpus.seen for name, corpus in earlier.items()}


@REPLAY_POLICIES.register("uniform")
class UniformPolicy(ReplayPolicy):
    """equal parts"""

    @staticmethod
    def weigh(earlier: Mapping[str, CorpusHistory], weights: Mapping[str, float]) -> dict[str, int]:
        """Return 1 for each corpus."""
        return dict.fromkeys(earlier, 1)


@REPLAY_POLICIES.register("recent")
class RecentPolicy(ReplayPolicy):
    """the corpora of a stage twice as much as those of the stage before it, and so on"""

    @staticmethod
    def weigh(earlier: Mapping[str, CorpusHistory], weights: Mapping[str, float]) -> dict[str, int]:
        """Return a power of 2 that grows with the number of the corpus's stage."""
        stages = sorted({corpus.stage for corpus in earlier.values()})
        age = {stage: index for index, stage in enumerate(stages)}
        return {name: 1 << age[corpus.stage] for name, corpus in earlier.items()}


@REPLAY_POLICIES.register("fixed")
class FixedPolicy(ReplayPolicy):
    """by `weights`; a corpus without one is not replayed"""

    uses_weights: ClassVar[bool] = True

    @staticmethod
    def weigh(earlier: Mapping[str, CorpusHistory], weights: Mapping[str, float]) -> dict[str, int]:
        """Return the weights as whole numbers in the same proportion."""
        exact = {name: as_written(weights.get(name, 0)) for name in earlier}
        scale = math.lcm(*(weight.denominator for weight in exact.values()))
        return {name: int(weight * scale) for name, weight in exact.items()}

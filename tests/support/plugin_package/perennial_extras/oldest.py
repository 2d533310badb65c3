"""A replay policy: the trunk's first corpus alone."""

from __future__ import annotations

from collections.abc import Mapping

from perennial.mixture import CorpusHistory, ReplayPolicy


class OldestPolicy(ReplayPolicy):
    """the oldest corpus alone"""

    @staticmethod
    def weigh(earlier: Mapping[str, CorpusHistory], weights: Mapping[str, float]) -> dict[str, int]:
        """Return 1 for the first corpus and 0 for the others."""
        return {name: int(index == 0) for index, name in enumerate(earlier)}

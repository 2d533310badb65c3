"""Running sums over the stages of a trunk: a stage costs what it trains, not what came before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_

from perennial.mixture import Source, TrunkUse
from perennial.runs.entities import Stage

Skipped = Mapping[str, Sequence[int]]
"""trunk steps whose batch was left out, by the folder of their stage"""


class TrunkSums:
    """Sums over the first stages of a trunk.

    Attributes:
        stages: the stages that were summed.
        use: what they planned for each corpus, or part of one.
        seen: sequences that they trained, by corpus.
    """

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.use = TrunkUse()
        self.seen: Counter[str] = Counter()

    def are_of(self, stages: Sequence[Stage]) -> bool:
        """Return whether all that was summed is the beginning of these stages."""
        return len(self.stages) <= len(stages) and all(map(is_, self.stages, stages))

    def extend(
        self, stages: Sequence[Stage], count_trained: Callable[[Stage], Mapping[str, int]]
    ) -> TrunkSums:
        """Sum the stages behind those that were summed.

        Args:
            stages: all stages until there, of which these sums are.
            count_trained: counts the sequences of a whole stage, by corpus.
        """
        for stage in stages[len(self.stages) :]:
            self.use.add(stage.mix)
            self.seen.update(count_trained(stage))
            self.stages.append(stage)
        return self


@dataclass(frozen=True)
class StoredUse:
    """The plans for a corpus, or part of one; `new` is its own stage and its source there."""

    corpus: str
    part: str | None
    seen: int
    replayed: int
    new: tuple[int, Source] | None


@dataclass(frozen=True)
class StoredSums:
    """Running sums in the form of a snapshot.

    stages: number of the stages that were summed.
    """

    stages: int
    seen: dict[str, int]
    uses: list[StoredUse]
    proxies: list[str]

    @classmethod
    def of(cls, sums: TrunkSums) -> StoredSums:
        """Return the form of sums; corpora that were new in a stage come first, in their order."""
        use = sums.use
        uses = [
            StoredUse(*key, use.seen[key], use.replayed.get(key, 0), use.firsts.get(key))
            for key in dict.fromkeys([*use.firsts, *use.seen])
        ]
        return cls(use.stages, dict(sums.seen), uses, list(use.proxies))

    def restored(self, stages: Sequence[Stage]) -> TrunkSums:
        """Return the sums over the first of these stages."""
        sums = TrunkSums()
        sums.stages, sums.seen = list(stages[: self.stages]), Counter(self.seen)
        use = sums.use
        use.stages, use.proxies = self.stages, dict.fromkeys(self.proxies)
        for its in self.uses:
            key = its.corpus, its.part
            use.seen[key] = its.seen
            if its.replayed:
                use.replayed[key] = its.replayed
            if its.new is not None:
                use.firsts[key] = its.new
        return sums

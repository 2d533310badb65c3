"""Which sequences make up global step s: pure integer arithmetic, no state (invariants I2, I3).

A stage takes `sequences` of each source over `steps` batches of `global_batch` sequences. Every
batch takes the whole part of a source's quota; the fractional parts are dealt by systematic
sampling on a circle of `steps` points: each source owns an arc of `sequences % steps` points, laid
end to end, and step s takes one more of every source whose arc holds the point `s * stride mod
steps`. The arcs cover the circle a whole number of times, so every batch is full; the stride is
coprime to `steps`, so a stage visits every point once and its totals are exact; and because the
stride is near the golden section of `steps`, any run of steps is close to the shares as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Source:
    """What one stage takes of one corpus.

    sequences: how many it takes over the whole stage.
    start: position, in the corpus's training order, of the first one.
    extent: length of that order; positions wrap there.
    """

    corpus: str
    sequences: int
    start: int
    extent: int

    def row(self, taken: int) -> int:
        """Row of the corpus that is read when `taken` sequences were taken in this stage before."""
        return (self.start + taken) % self.extent


@dataclass(frozen=True)
class StageMix:
    """One stage's share of the plan: the new corpus first, then the replayed ones."""

    corpus: str
    steps: int
    global_batch: int
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        total = sum(source.sequences for source in self.sources)
        if total != self.steps * self.global_batch:
            raise ValueError(
                f"sources give {total} sequences, the stage has {self.steps} x {self.global_batch}"
            )

    @cached_property
    def _stride(self) -> int:
        guess = max(1, round(self.steps * _GOLDEN))
        return next(p for p in range(guess, 2 * self.steps + 2) if math.gcd(p, self.steps) == 1)

    @cached_property
    def _arc_starts(self) -> tuple[int, ...]:
        starts, end = [], 0
        for source in self.sources:
            starts.append(end)
            end = (end + source.sequences % self.steps) % self.steps
        return tuple(starts)

    def taken(self, step: int) -> tuple[int, ...]:
        """Sequences taken of each source before `step` (0 .. steps), in O(log steps) a source."""
        return tuple(
            source.sequences // self.steps * step
            + _visits(step, self._stride, self.steps, start, source.sequences % self.steps)
            for source, start in zip(self.sources, self._arc_starts, strict=True)
        )

    def rows(self, step: int) -> list[tuple[int, int]]:
        """The batch of `step` as (source index, row of its corpus), `global_batch` long."""
        before, after = self.taken(step), self.taken(step + 1)
        return [
            (index, source.row(taken))
            for index, source in enumerate(self.sources)
            for taken in range(before[index], after[index])
        ]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; the few integers that are a stage's whole data state."""
        return asdict(self) | {"sources": [asdict(source) for source in self.sources]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StageMix:
        """The inverse of `to_dict`."""
        sources = tuple(Source(**source) for source in data["sources"])
        return cls(data["corpus"], data["steps"], data["global_batch"], sources)


def stage_mix(
    history: Sequence[StageMix],
    corpus: str,
    rows: int,
    steps: int,
    global_batch: int,
    replay_share: float,
) -> StageMix:
    """The next stage: new sequences of `corpus`, and a compute-equivalent share of replay.

    history: the mixes of all earlier stages, in order.
    rows: training sequences of the new corpus.
    replay_share: share of the budget that is drawn from earlier corpora, 0..1; without any earlier
        corpus nothing is replayed.

    The replayed sequences are split over earlier corpora in proportion to the sequences that the
    trunk has seen of each, replays included (arXiv 2403.08763, configs of the 3 x 100B
    experiment). Each is replayed in the order in which it was first trained, from where the last
    replay stopped, wrapping at the end of what was trained.
    """
    budget = steps * global_batch
    seen = seen_sequences(history)
    replayed = round(replay_share * budget) if seen else 0
    sources = [Source(corpus, budget - replayed, 0, rows)]
    for earlier, count in apportion(replayed, seen).items():
        if count:
            sources.append(_replay(history, earlier, count))
    return StageMix(corpus, steps, global_batch, tuple(sources))


def branch_mix(history: Sequence[StageMix], steps: int) -> StageMix:
    """A branch off the end of the trunk: the last stage's shares go on from where it stopped."""
    last = history[-1]
    budget = steps * last.global_batch
    counts = apportion(budget, {s.corpus: s.sequences for s in last.sources})
    sources = tuple(
        Source(s.corpus, counts[s.corpus], s.start + s.sequences, s.extent)
        for s in last.sources
        if counts[s.corpus]
    )
    return StageMix(last.corpus, steps, last.global_batch, sources)


def seen_sequences(history: Sequence[StageMix]) -> dict[str, int]:
    """Sequences that the trunk has trained of each corpus, replays included, in stage order."""
    seen: dict[str, int] = {}
    for mix in history:
        for source in mix.sources:
            seen[source.corpus] = seen.get(source.corpus, 0) + source.sequences
    return seen


def apportion(total: int, weights: dict[str, int]) -> dict[str, int]:
    """Whole numbers in proportion to the weights that add up to `total` (largest remainders)."""
    sum_of_weights = sum(weights.values())
    if not sum_of_weights:
        return dict.fromkeys(weights, 0)
    counts = {name: total * weight // sum_of_weights for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: -(total * weights[name] % sum_of_weights))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _replay(history: Sequence[StageMix], corpus: str, count: int) -> Source:
    replayed, extent = 0, 0
    for mix in history:
        for source in mix.sources:
            if source.corpus == corpus and mix.corpus == corpus:
                extent = min(source.sequences, source.extent)
            elif source.corpus == corpus:
                replayed += source.sequences
    return Source(corpus, count, replayed % extent, extent)


def _visits(steps: int, stride: int, circle: int, start: int, length: int) -> int:
    """How many s < steps have `s * stride mod circle` in [start, start + length) mod circle."""
    offset = circle - start
    return (
        _floor_sum(steps, circle, stride, offset)
        - _floor_sum(steps, circle, stride, offset - length + circle)
        + steps
    )


def _floor_sum(n: int, m: int, a: int, b: int) -> int:
    """Sum of floor((a*i + b) / m) for 0 <= i < n, for n, a, b >= 0 and m > 0, as Euclid divides."""
    total = 0
    while n:
        total += (n - 1) * n // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        last = a * n + b
        if last < m:
            break
        n, b = divmod(last, m)
        m, a = a, m
    return total

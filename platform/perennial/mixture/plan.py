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
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from perennial.mixture.policies import CorpusHistory
from perennial.mixture.replay import ReplayRule, apportion, split_replay

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Source:
    """The part of a stage that comes from one corpus.

    sequences: sequences that the whole stage takes.
    start: position of the first one in the corpus's training order.
    extent: length of that order; positions wrap there.
    """

    corpus: str
    sequences: int
    start: int
    extent: int


@dataclass(frozen=True)
class StageMix:
    """One stage's share of the plan: its new corpora first, then the replayed ones.

    corpora: the new ones, in the order of their sources.
    replay: the rule that the sources follow from.
    unreplayed: sequences of the replay share that are new ones instead, because no earlier corpus
        may be replayed any more.
    """

    corpora: tuple[str, ...]
    steps: int
    global_batch: int
    sources: tuple[Source, ...]
    replay: ReplayRule = field(default_factory=ReplayRule)
    unreplayed: int = 0

    def __post_init__(self) -> None:
        named = [source.corpus for source in self.sources]
        if len(set(named)) < len(named):
            raise ValueError(f"a corpus is two sources of one stage: {', '.join(named)}")
        total = sum(source.sequences for source in self.sources)
        if total != self.steps * self.global_batch:
            raise ValueError(
                f"sources give {total} sequences, the stage has {self.steps} x {self.global_batch}"
            )

    @cached_property
    def stride(self) -> int:
        """Return the distance between the points of successive steps on the circle of steps."""
        guess = max(1, round(self.steps * _GOLDEN))
        return next(p for p in range(guess, 2 * self.steps + 2) if math.gcd(p, self.steps) == 1)

    @cached_property
    def _arc_starts(self) -> tuple[int, ...]:
        starts, end = [], 0
        for source in self.sources:
            starts.append(end)
            end = (end + source.sequences % self.steps) % self.steps
        return tuple(starts)

    def count_taken(self, step: int) -> tuple[int, ...]:
        """Return the sequences taken of each source before `step` (0 .. steps).

        Costs O(log steps) a source, whatever the step.
        """
        return tuple(
            source.sequences // self.steps * step
            + _visits(step, self.stride, self.steps, start, source.sequences % self.steps)
            for source, start in zip(self.sources, self._arc_starts, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: the few integers that are a stage's whole data state."""
        return {
            "corpora": list(self.corpora),
            "steps": self.steps,
            "global_batch": self.global_batch,
            "sources": [asdict(source) for source in self.sources],
            "replay": self.replay.to_dict(),
            "unreplayed": self.unreplayed,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StageMix:
        """Return the mix that `to_dict` wrote.

        Reads the form of ledger schema 1 too, whose one new corpus is `corpus`.
        """
        fields = {name: value for name, value in data.items() if name != "corpus"}
        fields["corpora"] = tuple(data["corpora"] if "corpora" in data else [data["corpus"]])
        fields["sources"] = tuple(Source(**source) for source in data["sources"])
        fields["replay"] = ReplayRule.from_dict(data["replay"])
        return cls(**fields)

    @property
    def new(self) -> tuple[Source, ...]:
        """Return the sources that are new to the trunk."""
        return tuple(source for source in self.sources if source.corpus in self.corpora)

    @property
    def replayed(self) -> tuple[Source, ...]:
        """Return the sources that the trunk has trained before."""
        return tuple(source for source in self.sources if source.corpus not in self.corpora)


def stage_mix(
    history: Sequence[StageMix],
    new: Mapping[str, int],
    steps: int,
    global_batch: int,
    replay: ReplayRule,
) -> StageMix:
    """Return the next stage: the new corpora, and a compute-equivalent share of replay.

    Each corpus is replayed in the order in which it was first trained, from where the last replay
    stopped, wrapping at the end of what was trained; a proxy corpus as if all of it had been
    trained once, before the first stage. What the rule's cap forbids to replay becomes
    new sequences, which the mix counts in `unreplayed`.

    Args:
        history: the mixes of all earlier stages, in order.
        new: training sequences by new corpus; they share the budget in proportion to these.
        steps: optimizer steps of the stage.
        global_batch: sequences in one step.
        replay: how much is drawn from earlier corpora; nothing where there are none.
    """
    budget = steps * global_batch
    known_before = {**_proxies(history, replay, new), **_earlier(history)}
    earlier = {n: known for n, known in known_before.items() if n not in replay.retired}
    wanted = round(replay.share * budget) if earlier else 0
    counts = split_replay(replay, wanted, earlier)
    replayed = sum(counts.values())
    parts = apportion(budget - replayed, new)
    sources = [Source(name, parts[name], 0, rows) for name, rows in new.items()]
    for name, known in earlier.items():
        if counts.get(name):
            start = known.replayed % known.extent
            sources.append(Source(name, counts[name], start, known.extent))
    unreplayed = wanted - replayed
    return StageMix(tuple(new), steps, global_batch, tuple(sources), replay, unreplayed)


def branch_mix(history: Sequence[StageMix], steps: int, retired: Collection[str] = ()) -> StageMix:
    """Return a branch off the end of the trunk, with the last stage's shares.

    Its sources go on from where the last stage stopped.

    Args:
        history: the mixes of all stages until there, in order.
        steps: optimizer steps of the branch.
        retired: corpora that the branch leaves out; the others take their part.
    """
    last = history[-1]
    budget = steps * last.global_batch
    taken = {s.corpus: s.sequences for s in last.sources if s.corpus not in retired}
    counts = apportion(budget, taken)
    sources = tuple(
        Source(s.corpus, counts[s.corpus], s.start + s.sequences, s.extent)
        for s in last.sources
        if counts.get(s.corpus)
    )
    rule = ReplayRule.resolve(last.replay, retired)
    return StageMix(last.corpora, steps, last.global_batch, sources, rule)


def truncate_mix(mix: StageMix, steps: int) -> StageMix:
    """Return the beginning of a stage as a mix of its own.

    Args:
        mix: the stage.
        steps: steps to keep, from 1 to all.
    """
    if steps == mix.steps:
        return mix
    sources = tuple(
        replace(source, sequences=taken)
        for source, taken in zip(mix.sources, mix.count_taken(steps), strict=True)
    )
    return replace(mix, steps=steps, sources=sources)


def seen_sequences(history: Sequence[StageMix]) -> dict[str, int]:
    """Return the sequences trained of each corpus, replays included, in the order of the stages."""
    seen: dict[str, int] = {}
    for mix in history:
        for source in mix.sources:
            seen[source.corpus] = seen.get(source.corpus, 0) + source.sequences
    return seen


def trained_sequences(mix: StageMix, steps: int, skipped: Iterable[int] = ()) -> dict[str, int]:
    """Return the sequences of each corpus in the first batches of a stage.

    Args:
        mix: the stage.
        steps: how many batches, from the first one on.
        skipped: steps (of the stage) whose batch was left out.
    """
    trained = list(mix.count_taken(steps))
    for step in skipped:
        pair = zip(mix.count_taken(step), mix.count_taken(step + 1), strict=True)
        for index, (before, after) in enumerate(pair):
            trained[index] -= after - before
    return {s.corpus: count for s, count in zip(mix.sources, trained, strict=True)}


def _earlier(history: Sequence[StageMix]) -> dict[str, CorpusHistory]:
    """Return what the stages did with each corpus, in the order of the stages."""
    replayed: Counter[str] = Counter()
    firsts: dict[str, tuple[int, int]] = {}
    for stage, mix in enumerate(history):
        for source in mix.new:
            firsts[source.corpus] = stage, min(source.sequences, source.extent)
        for source in mix.replayed:
            replayed[source.corpus] += source.sequences
    seen = seen_sequences(history)
    # A stage of nothing but replay leaves nothing of its own corpora to replay.
    return {
        name: CorpusHistory(stage, seen[name], replayed[name], extent)
        for name, (stage, extent) in firsts.items()
        if extent
    }


def _proxies(
    history: Sequence[StageMix], rule: ReplayRule, new: Collection[str]
) -> dict[str, CorpusHistory]:
    """Return what was done with each proxy corpus, which counts as trained once before stage 0."""
    replayed = seen_sequences(history)
    return {
        name: CorpusHistory(-1, rows + replayed.get(name, 0), replayed.get(name, 0), rows)
        for name, rows in rule.proxies.items()
        if rows and name not in new
    }


def _visits(steps: int, stride: int, circle: int, start: int, length: int) -> int:
    """Count the s < steps with `s * stride mod circle` in [start, start + length) mod circle."""
    offset = circle - start
    return (
        _floor_sum(steps, circle, stride, offset)
        - _floor_sum(steps, circle, stride, offset - length + circle)
        + steps
    )


def _floor_sum(n: int, m: int, a: int, b: int) -> int:
    """Return the sum of floor((a*i + b) / m) for 0 <= i < n, for n, a, b >= 0 and m > 0.

    Takes O(log) steps, as Euclid's algorithm does.
    """
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

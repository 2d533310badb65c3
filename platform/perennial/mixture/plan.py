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
from typing import Any, NamedTuple

from perennial.mixture.parts import (
    Part,
    Weights,
    apportion_parts,
    name_source,
    rows_of,
    weights_of,
)
from perennial.mixture.policies import CorpusHistory
from perennial.mixture.replay import PartKey, ReplayRule, apportion, split_replay

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Source:
    """The part of a stage that comes from one corpus, or from one part of a corpus.

    sequences: sequences that the whole stage takes.
    start: position of the first one in the source's training order.
    extent: length of that order; positions wrap there.
    part: name of the part; None for a corpus without parts.
    first: row of the corpus at position 0.
    """

    corpus: str
    sequences: int
    start: int
    extent: int
    part: str | None = None
    first: int = 0

    @property
    def key(self) -> PartKey:
        """Return what no two sources of a stage have in common."""
        return self.corpus, self.part

    @property
    def name(self) -> str:
        """Return the corpus, and the part if it has any, as it is shown."""
        return name_source(self.corpus, self.part)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; that of a corpus without parts is the one of before there were."""
        whole = asdict(self)
        if self.part is None:
            del whole["part"], whole["first"]
        return whole


@dataclass(frozen=True)
class StageMix:
    """One stage's share of the plan: its new corpora first, then the replayed ones.

    The parts of a corpus are sources next to each other, so that every batch holds its share of the
    corpus within one sequence too.

    corpora: the new ones, in the order of their sources.
    replay: the rule that the sources follow from.
    unreplayed: sequences of the replay share that are new ones instead, because no earlier corpus
        may be replayed any more.
    weights: of the parts of the new corpora for which the run file gave any.
    mixture: of a branch, the rule of its shares, see `branch_mix`; of a stage always `stage`.
    """

    corpora: tuple[str, ...]
    steps: int
    global_batch: int
    sources: tuple[Source, ...]
    replay: ReplayRule = field(default_factory=ReplayRule)
    unreplayed: int = 0
    weights: Mapping[str, Weights] = field(default_factory=dict)
    mixture: str | Mapping[str, float] = "stage"

    def __post_init__(self) -> None:
        if len({source.key for source in self.sources}) < len(self.sources):
            named = ", ".join(source.name for source in self.sources)
            raise ValueError(f"a corpus is two sources of one stage: {named}")
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
        whole: dict[str, Any] = {
            "corpora": list(self.corpora),
            "steps": self.steps,
            "global_batch": self.global_batch,
            "sources": [source.to_dict() for source in self.sources],
            "replay": self.replay.to_dict(),
            "unreplayed": self.unreplayed,
        }
        if self.weights:
            whole["weights"] = {name: dict(weights) for name, weights in self.weights.items()}
        if self.mixture != "stage":  # a mix without one is written as before there were any
            rule = self.mixture
            whole["mixture"] = rule if isinstance(rule, str) else dict(rule)
        return whole

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


@dataclass
class TrunkUse:
    """Running sums of what the stages of a trunk did with each corpus, or part of one.

    A stage costs its own sources, however many came before it.

    Attributes:
        stages: number of the stages.
        seen: sequences trained, replays included.
        replayed: sequences replayed.
        firsts: the stage that each was new in, and its source there, in the order of the stages.
        proxies: the proxy corpora of the stages' rules, in the order in which they were named.
        last: the mix of the last stage; None where there is none, or only its sums are known.
    """

    stages: int = 0
    seen: Counter[PartKey] = field(default_factory=Counter)
    replayed: Counter[PartKey] = field(default_factory=Counter)
    firsts: dict[PartKey, tuple[int, Source]] = field(default_factory=dict)
    proxies: dict[str, None] = field(default_factory=dict)
    last: StageMix | None = None

    @classmethod
    def of(cls, history: History) -> TrunkUse:
        """Return the sums over the mixes of stages, in their order."""
        if isinstance(history, TrunkUse):
            return history
        use = cls()
        for mix in history:
            use.add(mix)
        return use

    def add(self, mix: StageMix) -> None:
        """Count the next stage."""
        for source in mix.sources:
            self.seen[source.key] += source.sequences
            if source.corpus in mix.corpora:
                self.firsts[source.key] = self.stages, source
            else:
                self.replayed[source.key] += source.sequences
        self.proxies |= dict.fromkeys(mix.replay.proxies)
        self.stages += 1
        self.last = mix

    def followed_by(self, mix: StageMix) -> TrunkUse:
        """Return the sums with one stage more; these stay what they are."""
        longer = TrunkUse(
            self.stages,
            Counter(self.seen),
            Counter(self.replayed),
            dict(self.firsts),
            dict(self.proxies),
        )
        longer.add(mix)
        return longer


History = Sequence[StageMix] | TrunkUse
"""the mixes of a trunk's stages in their order, or the sums over them"""


def stage_mix(
    history: History,
    new: Mapping[str, int | Sequence[Part]],
    steps: int,
    global_batch: int,
    replay: ReplayRule,
) -> StageMix:
    """Return the next stage: the new corpora, and a compute-equivalent share of replay.

    Each corpus is replayed in the order in which it was first trained, from where the last replay
    stopped, wrapping at the end of what was trained; its parts in proportion to what was seen of
    each; a proxy corpus as if all of it had been trained once, before the first stage. What the
    rule's cap forbids to replay becomes new sequences, which the mix counts in `unreplayed`.

    Args:
        history: all earlier stages.
        new: training sequences by new corpus, or its parts; the corpora share the budget in
            proportion to their sequences (of the parts with a weight), the parts of one by weight.
        steps: optimizer steps of the stage.
        global_batch: sequences in one step.
        replay: how much is drawn from earlier corpora; nothing where there are none.
    """
    budget = steps * global_batch
    earlier = known_corpora(history, replay, replay.retired, new) if replay.share else {}
    wanted = round(replay.share * budget) if earlier else 0
    histories = {key: known.history for key, known in earlier.items()}
    counts = split_replay(replay, wanted, histories) if wanted else {}
    replayed = sum(counts.values())
    shares = apportion(budget - replayed, {name: rows_of(rows) for name, rows in new.items()})
    sources: list[Source] = []
    for name, rows in new.items():
        if isinstance(rows, int):
            sources.append(Source(name, shares[name], 0, rows))
            continue
        parts = apportion_parts(shares[name], rows)
        sources += [Source(name, n, 0, part.rows, part.name, part.first) for part, n in parts]
    sources += [
        replace(known.replay_source(key), sequences=counts[key])
        for key, known in earlier.items()
        if counts.get(key)
    ]
    unreplayed = wanted - replayed
    weights = weights_of(new)
    return StageMix(tuple(new), steps, global_batch, tuple(sources), replay, unreplayed, weights)


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


def seen_by_part(history: Sequence[StageMix]) -> dict[PartKey, int]:
    """Return the sequences trained of each corpus or part of one, replays included."""
    seen: Counter[PartKey] = Counter()
    for mix in history:
        for source in mix.sources:
            seen[source.key] += source.sequences
    return dict(seen)


def seen_sequences(history: Sequence[StageMix]) -> dict[str, int]:
    """Return the sequences trained of each corpus, replays included, in the order of the stages."""
    seen: dict[str, int] = {}
    for mix in history:
        for source in mix.sources:
            seen[source.corpus] = seen.get(source.corpus, 0) + source.sequences
    return seen


def trained_sequences(mix: StageMix, steps: int, skipped: Iterable[int] = ()) -> dict[str, int]:
    """Return the sequences of each corpus in a stage's first batches; see `trained_by_part`."""
    by_corpus: Counter[str] = Counter()
    for (corpus, _), count in trained_by_part(mix, steps, skipped).items():
        by_corpus[corpus] += count
    return dict(by_corpus)


def trained_by_part(mix: StageMix, steps: int, skipped: Iterable[int] = ()) -> dict[PartKey, int]:
    """Return the sequences of each corpus, or part of one, in the first batches of a stage.

    Args:
        mix: the stage.
        steps: how many batches, from the first one on.
        skipped: steps (of the stage) whose batch was left out.
    """
    whole = steps == mix.steps  # of which no arithmetic is needed
    trained = [s.sequences for s in mix.sources] if whole else list(mix.count_taken(steps))
    for step in skipped:
        pair = zip(mix.count_taken(step), mix.count_taken(step + 1), strict=True)
        for index, (before, after) in enumerate(pair):
            trained[index] -= after - before
    return {source.key: count for source, count in zip(mix.sources, trained, strict=True)}


class CorpusUse(NamedTuple):
    """The stages' use of a corpus or a part of it, and the corpus's row where that begins."""

    history: CorpusHistory
    first: int

    def replay_source(self, key: PartKey) -> Source:
        """Return the source that goes on where the last replay stopped, of no sequences yet."""
        start = self.history.replayed % self.history.extent
        return Source(key[0], 0, start, self.history.extent, key[1], self.first)


def known_corpora(
    history: History,
    rule: ReplayRule,
    left_out: Collection[str] = (),
    new: Collection[str] = (),
) -> dict[PartKey, CorpusUse]:
    """Return what the trunk did with each corpus, or part of one; proxies first.

    Args:
        history: all stages until there.
        rule: whose proxy corpora count as trained once before the first stage.
        left_out: corpora that are not returned.
        new: corpora of the stage to come, which are no proxies in it.
    """
    use = TrunkUse.of(history)
    known = {**_proxies(use, rule, new), **_earlier(use)}
    hidden = frozenset(left_out)
    return {key: its for key, its in known.items() if key[0] not in hidden}


def _earlier(use: TrunkUse) -> dict[PartKey, CorpusUse]:
    """Return what the stages did with each corpus, or part of one, in the order of the stages."""
    # A stage of nothing but replay leaves nothing of its own corpora to replay.
    return {
        key: CorpusUse(CorpusHistory(stage, use.seen[key], use.replayed[key], extent), source.first)
        for key, (stage, source) in use.firsts.items()
        if (extent := min(source.sequences, source.extent))
    }


def _proxies(use: TrunkUse, rule: ReplayRule, new: Collection[str]) -> dict[PartKey, CorpusUse]:
    """Return what was done with each proxy corpus, which counts as trained once before stage 0."""
    known = {}
    for corpus, sizes in rule.proxies.items():
        parts = {None: sizes} if isinstance(sizes, int) else sizes
        first = 0
        for part, rows in parts.items():
            replayed = use.seen.get((corpus, part), 0)
            if rows and corpus not in new:
                done = CorpusHistory(-1, rows + replayed, replayed, rows)
                known[corpus, part] = CorpusUse(done, first)
            first += rows
    return known


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

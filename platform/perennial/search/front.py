"""The Pareto front of a search, how sure it is, and its knee. Pure.

Two objectives, of both of which less is better: the first is adaptation to the new corpus, the
second forgetting of earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from perennial.evaluation import pareto_front

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

Pair = tuple[float, float]
REPLICATES = 1000


@dataclass(frozen=True)
class Sureness:
    """Confidence of the bootstrap in one trial.

    Attributes:
        low, high: 95% interval of both objectives.
        on_front, knee: share of the replicates in which the trial is on the front, or is the knee.
    """

    low: Pair
    high: Pair
    on_front: float
    knee: float


def scores(points: Sequence[Pair], front: Sequence[int], weight: float = 0.5) -> list[float]:
    """Return the distance of every point from the best of both objectives; less is better.

    At a weight of one half, the front's lowest score is the point that lies deepest below the line
    between its two ends.

    Args:
        points: the objectives of every trial.
        front: indices of the points whose range is the unit of distance.
        weight: of the first objective; the second has the rest.
    """
    ends = [points[i] for i in front]
    low = [min(end[k] for end in ends) for k in (0, 1)]
    width = [max(end[k] for end in ends) - low[k] or 1.0 for k in (0, 1)]
    return [
        sum(w * (point[k] - low[k]) / width[k] for k, w in enumerate((weight, 1 - weight)))
        for point in points
    ]


def knee(points: Sequence[Pair], weight: float = 0.5) -> int:
    """Return the index of the point of the front that gives most of both objectives.

    Of equals, it is the one with the lower sum.

    Args:
        points: the objectives of every trial, at least one.
        weight: of the first objective; see `scores`.
    """
    front = pareto_front(points)
    distances = scores(points, front, weight)
    # Rounded: equal points must stay equal after their different sums.
    return min(front, key=lambda i: (round(distances[i], 12), sum(points[i])))


def survivors(points: Sequence[Pair], factor: int) -> list[int]:
    """Return the indices of the trials that successive halving keeps, in their order.

    Whole fronts come first (the points that nothing beats, then those that only these beat, ...);
    of the front that does not fit, those nearest to the best of both objectives.

    Args:
        points: the objectives of every trial.
        factor: one in so many is kept, rounded up.
    """
    left = list(range(len(points)))
    stay: list[int] = []
    wanted = -(-len(points) // factor)
    while len(stay) < wanted:
        chosen = [points[i] for i in left]
        layer = pareto_front(chosen)
        distances = scores(chosen, layer)
        layer.sort(key=lambda i: distances[i])
        stay += [left[i] for i in layer[: wanted - len(stay)]]
        left = [trial for i, trial in enumerate(left) if i not in layer]
    return sorted(stay)


def sureness(samples: Array) -> list[Sureness]:
    """Return the confidence in every trial, from bootstrap samples `(replicates, trials, 2)`."""
    low, high = np.quantile(samples, (0.025, 0.975), axis=0)
    fronts = np.zeros(samples.shape[1])
    knees = np.zeros(samples.shape[1])
    for sample in samples:
        points = [(float(a), float(b)) for a, b in sample]
        fronts[pareto_front(points)] += 1
        knees[knee(points)] += 1
    count = len(samples)
    return [
        Sureness(
            (float(low[i][0]), float(low[i][1])),
            (float(high[i][0]), float(high[i][1])),
            float(fronts[i] / count),
            float(knees[i] / count),
        )
        for i in range(samples.shape[1])
    ]


def resample(
    trials: Sequence[Sequence[Mapping[str, Array]]],
    before: Mapping[str, Array],
    objectives: Sequence[str],
    new: str,
    *,
    seed: int,
    replicates: int = REPLICATES,
) -> Array:
    """Return bootstrap samples `(replicates, trials, 2)` of the objectives.

    A replicate draws one set of documents for all trials, because what makes a document hard must
    not count as a difference between two trials; of every trial it draws as many seeds as it has.

    Args:
        trials: by trial and seed, nats and tokens `(documents, 2)` by corpus.
        before: the same for the checkpoint that the trials began with, for the old corpora.
        objectives: names of the two objectives.
        new: the corpus whose stage is searched.
        seed: of the draws.
        replicates: number of samples.
    """
    dice = np.random.default_rng(seed)
    losses: dict[str, Array] = {}
    start: dict[str, Array] = {}
    picked = [dice.integers(len(seeds), size=(replicates, len(seeds))) for seeds in trials]
    for corpus in {new: None, **dict.fromkeys(before)}:
        documents = len(trials[0][0][corpus])
        drawn = dice.multinomial(documents, np.full(documents, 1 / documents), size=replicates)
        losses[corpus] = np.stack(
            [
                _mean_over_seeds([_ratio(drawn, seed[corpus]) for seed in seeds], chosen)
                for seeds, chosen in zip(trials, picked, strict=True)
            ],
            axis=1,
        )
        if corpus in before:
            start[corpus] = _ratio(drawn, before[corpus])[:, None]
    rises = {corpus: losses[corpus] - start[corpus] for corpus in before}
    known = {"adaptation": losses[new], "forgetting": sum(rises.values()) / max(1, len(rises))}
    known |= {f"forgetting/{corpus}": rise for corpus, rise in rises.items()}
    return np.stack([known[name] for name in objectives], axis=2)


def _ratio(drawn: npt.NDArray[np.int64], documents: Array) -> Array:
    """Return the loss per token `(replicates,)` of drawn documents `(replicates, documents)`."""
    sums: Array = drawn @ documents
    ratio: Array = sums[:, 0] / sums[:, 1]
    return ratio


def _mean_over_seeds(by_seed: Sequence[Array], chosen: npt.NDArray[np.int64]) -> Array:
    stacked = np.stack(by_seed, axis=1)
    mean: Array = np.take_along_axis(stacked, chosen, axis=1).mean(axis=1)
    return mean

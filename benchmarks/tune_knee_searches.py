"""Every searcher over a table of trials that were all trained, and what it would have cost."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perennial.config.search import Choices, Point
from perennial.evaluation import pareto_front
from perennial.search.advisor import fit_laws, next_point
from perennial.search.front import Pair, knee, scores, survivors
from perennial.search.space import Space

OBJECTIVES = ("adaptation", "forgetting")
SEEDS = 50
Found = tuple[Point, int]
"""The point that a search advises, and the optimizer steps that it trained."""


@dataclass(frozen=True)
class Table:
    """Trials by point, and their objectives by step."""

    head: Mapping[str, Any]
    trials: Mapping[Point, Mapping[int, Pair]]
    seconds: float

    @classmethod
    def read(cls, path: Path) -> Table:
        """What `measure` wrote."""
        head, *lines = map(json.loads, path.read_text().splitlines())
        trials = {
            Point(**line["point"]): {int(step): tuple(v) for step, v in line["looks"].items()}
            for line in lines
        }
        return cls(head, trials, sum(line["seconds"] for line in lines))

    @property
    def space(self) -> Space:
        """The grid."""
        etas = tuple(dict.fromkeys(point.eta for point in self.trials))
        shares = tuple(dict.fromkeys(point.replay for point in self.trials))
        return Space(Choices(etas), Choices(shares), ("seen",))

    @property
    def steps(self) -> int:
        """Of a trial of the full grid."""
        return int(self.head["steps"])

    def knee(self, points: Sequence[Point], steps: int) -> Point:
        """The knee of some points, judged after so many steps."""
        return points[knee([self.trials[point][steps] for point in points])]


def halving(table: Table, points: Sequence[Point], rungs: Sequence[int], factor: int) -> Found:
    """Successive halving, as `perennial.search.tune_runner` does it."""
    cost, before = 0, 0
    for rung in rungs:
        cost += len(points) * (rung - before)
        before = rung
        if rung != rungs[-1]:
            stay = survivors([table.trials[point][rung] for point in points], factor)
            points = [points[i] for i in stay]
    return table.knee(points, rungs[-1]), cost


def optuna(table: Table, count: int, steps: int, seed: int) -> Found:
    """Ray Tune's Optuna searcher; a point that it asks for again costs nothing again."""
    from perennial.search.tune_runner import optuna_searcher

    searcher = optuna_searcher(table.space, [], seed)
    tried: dict[Point, None] = {}
    for number in range(10 * count):
        name = str(number)
        point = Point(**searcher.suggest(name))
        if len(tried) == count and point not in tried:
            break
        tried[point] = None
        first, second = table.trials[point][steps]
        told = {"objective_1": first, "objective_2": second}
        searcher.on_trial_complete(name, told)
    return table.knee(list(tried), steps), len(tried) * steps


def advisor(table: Table, count: int, steps: int) -> tuple[Found, list[Point]]:
    """The advisor, one trial after the other; what it found, and what it tried."""
    tried: list[Point] = []
    tokens = float(steps * table.head["tokens_per_step"])
    while len(tried) < count:
        finished = {point: {tokens: table.trials[point][steps]} for point in tried}
        point = next_point(table.space, finished, [], OBJECTIVES, tokens)
        assert point is not None
        tried.append(point)
    return (table.knee(tried, steps), count * steps), tried


def report(path: Path) -> str:
    """The result as Markdown."""
    return "\n".join(_report(Table.read(path)))


def _report(table: Table) -> Iterator[str]:
    head = table.head
    libraries = ", ".join(f"{name} {number}" for name, number in head["versions"].items())
    yield "# The knee of a search\n"
    yield f"`{' '.join(['python', *sys.argv])}`  "
    yield f"{libraries}; {head['cores']} cores, {head['threads']} threads; "
    yield f"the table took {table.seconds / 60:.0f} minutes on a machine that others used too\n"
    yield from _grid(table)
    yield from _searches(table)
    yield from _law(table)


def _grid(table: Table) -> Iterator[str]:
    points = list(table.trials)
    values = [table.trials[point][table.steps] for point in points]
    front = pareto_front(values)
    told = scores(values, front)
    best = points[knee(values)]
    length = table.head["tokens_per_step"]
    yield "## The full grid\n"
    yield (
        f"{len(points)} points, each trained for {table.steps} steps of French's stage, half of "
        f"it: {table.steps * length:,} tokens. Adaptation is the loss on French, forgetting the "
        "rise of the loss on English, held-out nats per token. The score is that of the knee: the "
        "mean of both, each from 0 to 1 over the width of the front.\n"
    )
    yield "| eta_const | replay | adaptation | forgetting | score | front |"
    yield "| ---: | ---: | ---: | ---: | ---: | --- |"
    for i, point in enumerate(points):
        mark = "**knee**" if point == best else "front" if i in front else ""
        yield (
            f"| {point.eta:g} | {point.replay:.0%} | {values[i][0]:.3f} | {values[i][1]:+.3f} "
            f"| {told[i]:.3f} | {mark} |"
        )
    yield ""


def _searches(table: Table) -> Iterator[str]:
    space, whole = table.space, table.steps
    grid = space.grid()

    def seeded(one: Callable[[int], Found]) -> list[Found]:
        return [one(seed) for seed in range(SEEDS)]

    arms: dict[str, list[Found]] = {
        "grid, halving 4, 16, 32 steps (1 in 5)": [halving(table, grid, (4, 16, whole), 5)],
        "grid, 7 steps each": [halving(table, grid, (7,), 1)],
        "grid, 4 steps each": [halving(table, grid, (4,), 1)],
        "random 4": seeded(lambda s: halving(table, space.draw(4, s), (whole,), 1)),
        "random 10, halving 4, 16, 32 steps (1 in 4)": seeded(
            lambda s: halving(table, space.draw(10, s), (4, 16, whole), 4)
        ),
        "Optuna 4": seeded(lambda s: optuna(table, 4, whole, s)),
        "Optuna 8, 16 steps each": seeded(lambda s: optuna(table, 8, 16, s)),
        "advisor 8, 16 steps each": [advisor(table, 8, 16)[0]],
    }
    yield "## What cheaper searches find\n"
    yield (
        "Compute is in optimizer steps, of the full grid's. The regret is how far the score of the "
        "advised point, trained as the grid's, lies above the knee's; the goal is 0.05 at "
        f"25%. Searches with a seed: {SEEDS} of them; the median, and how many of them reach 0.05. "
        "The differences are the advised point's from the grid's knee, medians of their sizes.\n"
    )
    yield "| search | compute | regret | within 0.05 | adaptation off by | forgetting off by |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for name, runs in arms.items():
        yield _arm(table, name, runs)
    yield ""


def _arm(table: Table, name: str, runs: Sequence[Found]) -> str:
    points = list(table.trials)
    values = [table.trials[point][table.steps] for point in points]
    told = scores(values, pareto_front(values))
    best = knee(values)
    at = [points.index(point) for point, _ in runs]
    regrets = [told[i] - told[best] for i in at]
    compute = statistics.fmean(cost for _, cost in runs) / (len(points) * table.steps)
    off = [statistics.median(abs(values[i][k] - values[best][k]) for i in at) for k in (0, 1)]
    good = sum(regret <= 0.05 for regret in regrets)
    return (
        f"| {name} | {compute:.1%} | {statistics.median(regrets):.3f} | {good} of {len(runs)} "
        f"| {off[0]:.3f} | {off[1]:.3f} |"
    )


def _law(table: Table) -> Iterator[str]:
    """How well a law of the advisor's first trials predicts those that it never saw."""
    yield "## The law on trials that it never saw\n"
    yield (
        "The law is fitted to the first trials of the advisor and predicts every other point of "
        "the grid, at the same number of steps. The error is the root mean square; the spread is "
        "the standard deviation of what is predicted, which is the error of saying the mean; the "
        "expected error is what the fit said of itself by leaving its own trials out.\n"
    )
    yield "| fitted to | objective | error | expected error | spread |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for count, steps in ((6, table.steps), (10, table.steps), (8, 16)):
        _, tried = advisor(table, count, steps)
        tokens = float(steps * table.head["tokens_per_step"])
        finished = {point: {tokens: table.trials[point][steps]} for point in tried}
        laws = fit_laws(finished, OBJECTIVES, tokens)
        rest = [point for point in table.trials if point not in finished]
        for k, name in enumerate(OBJECTIVES):
            real = np.array([table.trials[point][steps][k] for point in rest])
            said = np.array([laws.predict(point)[0][k] for point in rest])
            error = float(np.sqrt(np.mean((said - real) ** 2)))
            yield (
                f"| {count} trials of {steps} steps | {name} | {error:.3f} "
                f"| {laws.fits[k].law.error:.3f} | {float(real.std()):.3f} |"
            )

"""Results of searches that were never run, for what reads or draws them."""

from __future__ import annotations

from perennial.config.search import Point
from perennial.evaluation import pareto_front
from perennial.search.results import (
    Advice,
    LawSummary,
    PredictedPoint,
    SearchCost,
    SearchResult,
    SearchTrial,
)


def sample_result(points: list[tuple[float, float]], law: bool = False) -> SearchResult:
    """Return a search's result, as far as its picture needs it; the last trial stopped early."""
    front = tuple(pareto_front(points))
    trials = tuple(
        SearchTrial(
            name=f"trial{i}",
            point=Point(1e-3, 0.1 * i, "seen"),
            steps=6,
            tokens=6000,
            finished=i < 2,
            values=(first, second),
            low=(first - 0.02, second - 0.02),
            high=(first + 0.02, second + 0.02),
            on_front=i in front,
            front_share=1.0,
            knee_share=1.0,
            folder=f"branches/trial{i}",
            checkpoints=(),
        )
        for i, (first, second) in enumerate(points)
    )
    predicted = PredictedPoint(trials[0].point, (3.0, 0.45), (0.02, 0.03))
    return SearchResult(
        search="quick",
        corpus="french",
        after="00-english",
        source="checkpoints/00-english/60",
        step=60,
        objectives=("adaptation", "forgetting"),
        trials=trials,
        front=front,
        knee=front[0],
        advice=(Advice("balanced", front[0], {}, ""), Advice("keep-old", 0, {}, "")),
        law=LawSummary((0.01, 0.01), (), (predicted, predicted)) if law else None,
        cost=SearchCost(18_000, 60_000, 0.3, 18_000, 1.0),
    )

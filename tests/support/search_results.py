"""Results of searches that were never run, for what reads or draws them."""

from __future__ import annotations

from perennial.config.search import Point
from perennial.evaluation import pareto_front
from perennial.search.layer_results import (
    ChildResult,
    LayerCost,
    LayerSearchResult,
    ReferenceResult,
)
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


def sample_layers(smallest: int | None = 2) -> LayerSearchResult:
    """Return the result of an Inheritune search, as far as what shows it needs it."""
    kinds = [(4, "inherited", 0.2), (4, "random", 0.4), (6, "inherited", -0.1), (6, "random", 0.3)]
    children = tuple(
        ChildResult(
            name=f"{layers}layers-{init}",
            layers=layers,
            init=init,
            parameters=100 * layers,
            steps=6,
            tokens=6000,
            flops=3_600_000 * layers,
            loss=3.0 + above,
            above=above,
            low=above - 0.02,
            high=above + 0.03,
            folder=f"branches/{layers}{init}",
            checkpoints=(f"branches/{layers}{init}/00000006",),
        )
        for layers, init, above in kinds
    )
    source = "checkpoints/00-english/00000006"
    reference = ReferenceResult(
        "00-english", source, ("english",), 8, 900, 6, 6000, 32_400_000, 3.0
    )
    fragment = {"model": {"path": "../../branches/6inherited/00000006"}}
    cost = LayerCost(24_000, 72_000_000, 2.2, 36_000_000)
    return LayerSearchResult(
        search="quick",
        reference=reference,
        margin=0.0,
        children=children,
        smallest=smallest,
        cost=cost,
        fragment=None if smallest is None else fragment,
    )

"""From the trials of a search to its result: front, knee, advice and law. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perennial.config.search import Point
from perennial.evaluation import pareto_front
from perennial.search.advisor import Finished, fit_laws
from perennial.search.front import Pair, Sureness, knee, resample, sureness
from perennial.search.law import LEAST_TRIALS
from perennial.search.results import (
    Advice,
    HeldOutPrediction,
    LawSummary,
    PredictedPoint,
    SearchCost,
    SearchResult,
    SearchTrial,
    result_key,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from perennial.search.space import Space

    Array = npt.NDArray[np.float64]

TASTES = {"keep-old": 0.25, "balanced": 0.5, "learn-new": 0.75}
"""Weight of the first objective, in widths of the front: at a quarter, what is kept counts three
times what is learned."""


@dataclass(frozen=True)
class TrialOutcome:
    """One point's trials, one a seed.

    by_steps: the objectives after so many steps, the mean over seeds.
    documents: of each seed, nats and tokens `(documents, 2)` by corpus, at its last step.
    """

    point: Point
    by_steps: Mapping[int, Pair]
    trained_steps: int
    folder: str
    checkpoints: tuple[str, ...]
    documents: tuple[Mapping[str, Array], ...]

    @property
    def steps(self) -> int:
        """Return the steps that it was trained for."""
        return max(self.by_steps)

    @property
    def values(self) -> Pair:
        """Return the objectives at its last step."""
        return self.by_steps[self.steps]


@dataclass(frozen=True)
class SearchSetting:
    """Settings that all trials of a search share.

    before: nats and tokens `(documents, 2)` of the old corpora where the trials begin.
    steps: of a trial at most; stage_steps: of the stage that is searched.
    """

    search: str
    corpus: str
    after: str
    source: str
    step: int
    rate: str
    objectives: tuple[str, str]
    before: Mapping[str, Array]
    steps: int
    stage_steps: int
    tokens_per_step: int
    seed: int


def summarize(
    setting: SearchSetting, space: Space, outcomes: Sequence[TrialOutcome]
) -> SearchResult:
    """Return the result of a search, its advice without commands.

    Args:
        setting: what all trials share.
        space: what was searched; the law predicts its points.
        outcomes: every point that was tried.
    """
    done = [i for i, outcome in enumerate(outcomes) if outcome.steps == setting.steps]
    values = [outcomes[i].values for i in done]
    front = tuple(done[i] for i in pareto_front(values))
    sure = dict(zip(done, _sureness(setting, [outcomes[i] for i in done]), strict=True))
    return SearchResult(
        search=setting.search,
        corpus=setting.corpus,
        after=setting.after,
        source=setting.source,
        step=setting.step,
        objectives=setting.objectives,
        trials=tuple(
            _trial(setting, outcome, i in front, sure.get(i)) for i, outcome in enumerate(outcomes)
        ),
        front=front,
        knee=done[knee(values)],
        advice=tuple(
            _advice(setting, taste, done[knee(values, weight)], outcomes)
            for taste, weight in TASTES.items()
        ),
        law=_law(setting, space, outcomes),
        cost=_cost(setting, outcomes),
    )


def _sureness(setting: SearchSetting, outcomes: Sequence[TrialOutcome]) -> list[Sureness]:
    documents = [outcome.documents for outcome in outcomes]
    samples = resample(
        documents, setting.before, setting.objectives, setting.corpus, seed=setting.seed
    )
    return sureness(samples)


def _trial(
    setting: SearchSetting, outcome: TrialOutcome, on_front: bool, sure: Sureness | None
) -> SearchTrial:
    return SearchTrial(
        name=outcome.point.name,
        point=outcome.point,
        steps=outcome.steps,
        tokens=outcome.steps * setting.tokens_per_step,
        finished=outcome.steps == setting.steps,
        values=outcome.values,
        low=sure.low if sure else None,
        high=sure.high if sure else None,
        on_front=on_front,
        front_share=sure.on_front if sure else 0.0,
        knee_share=sure.knee if sure else 0.0,
        folder=outcome.folder,
        checkpoints=outcome.checkpoints,
    )


def _advice(
    setting: SearchSetting, taste: str, trial: int, outcomes: Sequence[TrialOutcome]
) -> Advice:
    fragment = outcomes[trial].point.fragment(setting.corpus, setting.rate)
    return Advice(taste, trial, fragment, result_key(setting.search, f"{taste}.yaml"))


def _law(
    setting: SearchSetting, space: Space, outcomes: Sequence[TrialOutcome]
) -> LawSummary | None:
    """Return the law of all measurements with its front; None for too few trials."""
    length = setting.tokens_per_step
    measured: Finished = {
        outcome.point: {steps * length: pair for steps, pair in outcome.by_steps.items()}
        for outcome in outcomes
    }
    if len(measured) < LEAST_TRIALS:
        return None
    laws = fit_laws(measured, setting.objectives, setting.steps * length)
    rows = [
        (i, int(tokens), pair)
        for i, by_tokens in enumerate(measured.values())
        for tokens, pair in by_tokens.items()
    ]
    predictions = zip(rows, *(fit.held_out for fit in laws.fits), strict=True)
    grid = space.grid()
    predicted = [laws.predict(point) for point in grid]
    front = pareto_front([values for values, _ in predicted])
    first_law, second_law = (fit.law for fit in laws.fits)
    return LawSummary(
        errors=(first_law.error, second_law.error),
        held_out=tuple(
            HeldOutPrediction(i, tokens, pair, (first, second))
            for (i, tokens, pair), first, second in predictions
        ),
        front=tuple(PredictedPoint(grid[i], *predicted[i]) for i in front),
    )


def _cost(setting: SearchSetting, outcomes: Sequence[TrialOutcome]) -> SearchCost:
    length = setting.tokens_per_step
    trained = sum(outcome.trained_steps for outcome in outcomes) * length
    seeds = sum(len(outcome.checkpoints) for outcome in outcomes)
    stage, budget = setting.stage_steps * length, seeds * setting.steps * length
    return SearchCost(trained, stage, trained / stage, budget, trained / budget)

"""What a search found, as one JSON document. Pure.

It lies in the store as `searches/<name>/result.json`, with its picture beside it as `pareto.png`
and the advice as `keep-old.yaml`, `balanced.yaml` and `learn-new.yaml`:

    search, corpus                  name, corpus whose stage is searched
    after, source, step             the stage, checkpoint and trunk step that trials branch off
    objectives                      two names; every pair below is in this order, nats per token
    trials                          a list, the whole space that was tried, each with
        name, point                 what was tried: eta, replay, weighting, anneal
        steps, tokens               how far the trial was trained; of several seeds, each one
        finished                    whether it trained the whole budget; the others were stopped
        values, low, high           pairs: the mean over seeds, and a 95% interval of the bootstrap
        on_front                    whether no other finished trial is better in both
        front_share, knee_share     share of the bootstrap's replicates in which it is
        folder                      key of the trial's own checkpoints (of its first seed)
        checkpoints                 keys of what was measured, one a seed
    front, knee                     indices of finished trials, by the first objective; one index
    advice                          three: taste, trial (index), fragment (part of a run file),
                                    file (key of the fragment), command (that follows it)
    law                             null, or per objective `error` (root mean square over trials
                                    left out); `held_out`: trial, tokens, measured, predicted;
                                    `front`: point, values, errors of the predicted front
    cost                            trained_tokens, stage_tokens, share (of the stage),
                                    budget_tokens (of every trial at the whole budget), of_budget
                                    (share of that)

An interval is null in `low` and `high` for a trial that was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from perennial.config.search import Point
from perennial.evaluation import pareto_front
from perennial.search.advisor import Finished, fit_laws
from perennial.search.front import Pair, Sureness, knee, resample, sureness
from perennial.search.law import LEAST_TRIALS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from perennial.search.space import Space

    Array = npt.NDArray[np.float64]

TASTES = {"keep-old": 0.25, "balanced": 0.5, "learn-new": 0.75}
"""Weight of the first objective, in widths of the front: at a quarter, what is kept counts three
times what is learned."""


@dataclass(frozen=True)
class Outcome:
    """One point's trials, one a seed.

    by_steps: the objectives after so many steps, the mean over seeds.
    documents: of each seed, nats and tokens `(documents, 2)` by corpus, where it stands.
    """

    point: Point
    by_steps: Mapping[int, Pair]
    trained_steps: int
    folder: str
    checkpoints: tuple[str, ...]
    documents: tuple[Mapping[str, Array], ...]

    @property
    def steps(self) -> int:
        """How far it was trained."""
        return max(self.by_steps)

    @property
    def values(self) -> Pair:
        """The objectives where it stands."""
        return self.by_steps[self.steps]


@dataclass(frozen=True)
class Setting:
    """What all trials of a search share.

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


def result(setting: Setting, space: Space, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The document; see the top of this file."""
    done = [i for i, outcome in enumerate(outcomes) if outcome.steps == setting.steps]
    values = [outcomes[i].values for i in done]
    front = [done[i] for i in pareto_front(values)]
    sure = dict(zip(done, _sureness(setting, [outcomes[i] for i in done]), strict=True))
    return {
        "search": setting.search,
        "corpus": setting.corpus,
        "after": setting.after,
        "source": setting.source,
        "step": setting.step,
        "objectives": list(setting.objectives),
        "trials": [
            _trial(setting, outcome, i in front, sure.get(i)) for i, outcome in enumerate(outcomes)
        ],
        "front": front,
        "knee": done[knee(values)],
        "advice": [
            _advice(setting, taste, done[knee(values, weight)], outcomes)
            for taste, weight in TASTES.items()
        ],
        "law": _law(setting, space, outcomes),
        "cost": _cost(setting, outcomes),
    }


def place(search: str, name: str) -> str:
    """Key of a file of a search's result."""
    return f"searches/{search}/{name}"


def _sureness(setting: Setting, outcomes: Sequence[Outcome]) -> list[Sureness]:
    documents = [outcome.documents for outcome in outcomes]
    samples = resample(
        documents, setting.before, setting.objectives, setting.corpus, seed=setting.seed
    )
    return sureness(samples)


def _trial(
    setting: Setting, outcome: Outcome, on_front: bool, sure: Sureness | None
) -> dict[str, Any]:
    return {
        "name": outcome.point.name,
        "point": {name: value for name, value in asdict(outcome.point).items() if name != "seed"},
        "steps": outcome.steps,
        "tokens": outcome.steps * setting.tokens_per_step,
        "finished": outcome.steps == setting.steps,
        "values": list(outcome.values),
        "low": list(sure.low) if sure else None,
        "high": list(sure.high) if sure else None,
        "on_front": on_front,
        "front_share": sure.on_front if sure else 0.0,
        "knee_share": sure.knee if sure else 0.0,
        "folder": outcome.folder,
        "checkpoints": list(outcome.checkpoints),
    }


def _advice(
    setting: Setting, taste: str, trial: int, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    return {
        "taste": taste,
        "trial": trial,
        "fragment": outcomes[trial].point.fragment(setting.corpus, setting.rate),
        "file": place(setting.search, f"{taste}.yaml"),
    }


def _law(setting: Setting, space: Space, outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """The law of all measurements, and the front that it predicts; None of too few trials."""
    length = setting.tokens_per_step
    finished: Finished = {
        outcome.point: {steps * length: pair for steps, pair in outcome.by_steps.items()}
        for outcome in outcomes
    }
    if len(finished) < LEAST_TRIALS:
        return None
    laws = fit_laws(finished, setting.objectives, setting.steps * length)
    measured = [
        (i, tokens, pair)
        for i, by_tokens in enumerate(finished.values())
        for tokens, pair in by_tokens.items()
    ]
    told = zip(measured, *(fit.held_out for fit in laws.fits), strict=True)
    grid = space.grid()
    predicted = [laws.predict(point) for point in grid]
    front = pareto_front([values for values, _ in predicted])
    return {
        "errors": [fit.law.error for fit in laws.fits],
        "held_out": [
            {"trial": i, "tokens": tokens, "measured": list(pair), "predicted": [first, second]}
            for (i, tokens, pair), first, second in told
        ],
        "front": [
            {
                "point": {k: v for k, v in asdict(grid[i]).items() if k != "seed"},
                "values": list(predicted[i][0]),
                "errors": list(predicted[i][1]),
            }
            for i in front
        ],
    }


def _cost(setting: Setting, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    length = setting.tokens_per_step
    trained = sum(outcome.trained_steps for outcome in outcomes) * length
    seeds = sum(len(outcome.checkpoints) for outcome in outcomes)
    stage, budget = setting.stage_steps * length, seeds * setting.steps * length
    return {
        "trained_tokens": trained,
        "stage_tokens": stage,
        "share": trained / stage,
        "budget_tokens": budget,
        "of_budget": trained / budget,
    }

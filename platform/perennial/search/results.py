"""The result of a search, as `searches/<name>/result.json` in the store holds it.

Beside it lie its picture as `pareto.png` and the advice as `keep-old.yaml`, `balanced.yaml` and
`learn-new.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from perennial.config.search import Point

Pair = tuple[float, float]
"""values of the two objectives, in nats per token, in the order of `SearchResult.objectives`"""


@dataclass(frozen=True)
class SearchTrial:
    """One point that was tried, over all of its seeds.

    Attributes:
        steps, tokens: how far each of its trials was trained.
        finished: it trained the whole budget; the others were stopped early.
        values: mean over seeds.
        low, high: 95% interval of the bootstrap; None for a trial that was stopped.
        on_front: no other finished trial is better in both objectives.
        front_share, knee_share: share of the bootstrap's replicates in which it is on the front,
            or is the knee.
        folder: key of the trial's checkpoints (of its first seed).
        checkpoints: keys of what was measured, one a seed.
    """

    name: str
    point: Point
    steps: int
    tokens: int
    finished: bool
    values: Pair
    low: Pair | None
    high: Pair | None
    on_front: bool
    front_share: float
    knee_share: float
    folder: str
    checkpoints: tuple[str, ...]


@dataclass(frozen=True)
class Advice:
    """A trial that is advised.

    Attributes:
        taste: what it prefers: `keep-old`, `balanced` or `learn-new`.
        trial: index of the trial.
        fragment: the part of a run file that follows it.
        file: key of the fragment in the store.
        command: the command that follows it; "" in the store, which may be moved.
    """

    taste: str
    trial: int
    fragment: Mapping[str, Any]
    file: str
    command: str = ""


@dataclass(frozen=True)
class HeldOutPrediction:
    """A measurement, and what the law predicts that was fitted without its trial."""

    trial: int
    tokens: int
    measured: Pair
    predicted: Pair


@dataclass(frozen=True)
class PredictedPoint:
    """A point of the front that the law predicts, with one standard error of each objective."""

    point: Point
    values: Pair
    errors: Pair


@dataclass(frozen=True)
class LawSummary:
    """The law that was fitted to all measurements.

    Attributes:
        errors: by objective, the root mean square error over trials that were left out, in nats.
        held_out: every measurement with its prediction.
        front: the front that the law predicts.
    """

    errors: Pair
    held_out: tuple[HeldOutPrediction, ...]
    front: tuple[PredictedPoint, ...]


@dataclass(frozen=True)
class SearchCost:
    """Tokens that a search trained.

    Attributes:
        stage_tokens: of the stage that it advises; `share` is the trained tokens over these.
        budget_tokens: of every trial at the whole budget; `of_budget` is the share of these.
    """

    trained_tokens: int
    stage_tokens: int
    share: float
    budget_tokens: int
    of_budget: float


@dataclass(frozen=True)
class SearchResult:
    """Trials of a search, their Pareto front and advice.

    Attributes:
        search: its name.
        corpus: whose stage is searched.
        after, source, step: stage, checkpoint and trunk step that the trials branch off.
        objectives: names of the two values, less of each being better.
        trials: every point that was tried.
        front: indices of finished trials that nothing beats, by the first objective.
        knee: index of the trial that gives most of both.
        advice: one trial for each taste.
        law: None for too few trials.
        cost: what the trials cost.
    """

    search: str
    corpus: str
    after: str
    source: str
    step: int
    objectives: tuple[str, str]
    trials: tuple[SearchTrial, ...]
    front: tuple[int, ...]
    knee: int
    advice: tuple[Advice, ...]
    law: LawSummary | None
    cost: SearchCost

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form: lists for tuples, points without their seed."""
        law = self.law
        document = asdict(self) | {
            "trials": [asdict(trial) | {"point": point_dict(trial.point)} for trial in self.trials],
            "law": law and asdict(law) | {"front": [_predicted_dict(point) for point in law.front]},
        }
        listed: dict[str, Any] = _listed(document)
        return listed

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> SearchResult:
        """Return the result of a document; the inverse of `to_dict`. Unknown keys are ignored."""
        law = document["law"]
        result: SearchResult = _read(cls, document)
        return replace(
            result,
            objectives=tuple(document["objectives"]),
            trials=tuple(_read_trial(trial) for trial in document["trials"]),
            front=tuple(document["front"]),
            advice=tuple(_read(Advice, advice) for advice in document["advice"]),
            law=None if law is None else _read_law(law),
            cost=_read(SearchCost, document["cost"]),
        )


def result_key(search: str, name: str) -> str:
    """Return the key of a file of a search's result.

    Args:
        search: name of the search.
        name: of the file.
    """
    return f"searches/{search}/{name}"


def point_dict(point: Point) -> dict[str, Any]:
    """Return a point without its seed: a result's trial stands for all of its seeds."""
    return {name: value for name, value in asdict(point).items() if name != "seed"}


def _predicted_dict(predicted: PredictedPoint) -> dict[str, Any]:
    return asdict(predicted) | {"point": point_dict(predicted.point)}


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value


def _read(kind: type[Any], document: Mapping[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in document.items() if name in known})


def _pair(values: Sequence[float] | None) -> Pair | None:
    return None if values is None else (values[0], values[1])


def _read_trial(document: Mapping[str, Any]) -> SearchTrial:
    trial: SearchTrial = _read(SearchTrial, document)
    return replace(
        trial,
        point=Point(**document["point"]),
        values=tuple(document["values"]),
        low=_pair(document["low"]),
        high=_pair(document["high"]),
        checkpoints=tuple(document["checkpoints"]),
    )


def _read_law(document: Mapping[str, Any]) -> LawSummary:
    return LawSummary(
        errors=tuple(document["errors"]),
        held_out=tuple(
            HeldOutPrediction(
                row["trial"], row["tokens"], tuple(row["measured"]), tuple(row["predicted"])
            )
            for row in document["held_out"]
        ),
        front=tuple(
            PredictedPoint(Point(**row["point"]), tuple(row["values"]), tuple(row["errors"]))
            for row in document["front"]
        ),
    )

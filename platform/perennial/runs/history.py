"""How a run's stages went, step by step: read from the metrics beside their checkpoints."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from perennial.runs.worker_starts import read_starts
from perennial.training.checkpoint.manifest import kept_rows
from perennial.training.metrics import metrics_in

if TYPE_CHECKING:
    from perennial.runs.state import RunState, Stage
    from perennial.store import Store


class MetricPoint(NamedTuple):
    """A metric's value at one step, after so many tokens of the trunk."""

    tokens: int
    value: float
    stage: str


@dataclass(frozen=True)
class StageTime:
    """Where a stage's time went, in seconds.

    whole: from the decision to begin to the last checkpoint; None where it is not known.
    parts: of the steps that count, by part (`perennial.training.engine.step_timer`).
    starts: of worker groups; 0 where they were not kept.
    """

    stage: str
    whole: float | None
    parts: Mapping[str, float]
    starts: int

    @property
    def steps(self) -> float:
        """Seconds in steps that count."""
        return sum(self.parts.values())

    @property
    def goodput(self) -> float | None:
        """Share of the stage's time that was spent in steps that count, from 0 to 1."""
        return min(1.0, self.steps / self.whole) if self.whole else None

    @property
    def restarts(self) -> int | None:
        """How often a worker group had to be started again; None where it is not known."""
        return self.starts - 1 if self.starts else None


def goodput(times: Sequence[StageTime]) -> float | None:
    """Of all stages together; None where a stage's time is not known."""
    whole = [time.whole for time in times if time.whole]
    if not whole or len(whole) < len(times):
        return None
    return min(1.0, sum(time.steps for time in times) / sum(whole))


@dataclass(frozen=True)
class History:
    """losses: of every step that the trunk stands on, by its tokens.
    times: where the time of every trained stage went.
    curves: the values of every metric that the report draws, by the metric's name.
    """

    losses: tuple[MetricPoint, ...] = ()
    times: tuple[StageTime, ...] = ()
    curves: Mapping[str, tuple[MetricPoint, ...]] = field(default_factory=dict)


def read_history(store: Store, state: RunState, tokens_per_step: int) -> History:
    """The history of the stages that have a checkpoint."""
    losses: list[MetricPoint] = []
    times: list[StageTime] = []
    curves: defaultdict[str, list[MetricPoint]] = defaultdict(list)
    for stage in state.stages:
        _, rows = kept_rows(store, stage.folder)
        for row in rows:
            tokens = row["step"] * tokens_per_step
            losses.append(MetricPoint(tokens, row["loss"], stage.name))
            for metric, value in metrics_in(row):
                if metric.figure:
                    curves[metric.name].append(MetricPoint(tokens, value, stage.name))
        if stage.name in state.ends and rows:
            starts = len(read_starts(store, stage.folder))
            times.append(stage_time(stage, state.times.get(stage.name, {}), rows, starts))
    return History(
        tuple(losses), tuple(times), {name: tuple(points) for name, points in curves.items()}
    )


def stage_time(
    stage: Stage, times: Mapping[str, str], rows: Sequence[Mapping[str, Any]], starts: int
) -> StageTime:
    """Where a stage's time went; what is outside its steps is starts, repeats and waiting."""
    parts: Counter[str] = Counter()
    for row in rows:
        told = row.get("seconds") or {"other": row["batch_tokens"] / row["tokens_per_second"]}
        parts.update(told)
    return StageTime(stage.name, _between(times), dict(parts), starts)


def _between(times: Mapping[str, str]) -> float | None:
    if not {"started", "trained"} <= times.keys():
        return None
    begun, ended = (datetime.fromisoformat(times[name]) for name in ("started", "trained"))
    return (ended - begun).total_seconds()

"""Read the history of a run's stages from the metrics beside their checkpoints."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from perennial.runs.summary import SHOWN_STAGES, tokens_until
from perennial.runs.worker_starts import read_starts
from perennial.training.checkpoint.manifest import kept_rows
from perennial.training.metrics import metrics_in

if TYPE_CHECKING:
    from perennial.runs.state import RunState, Stage
    from perennial.store import Store


class CurvePoint(NamedTuple):
    """A metric's value at one step, after so many tokens of the trunk."""

    tokens: int
    value: float
    stage: str


@dataclass(frozen=True)
class StageTime:
    """The time of a stage by its uses, in seconds.

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
        """Return the seconds in steps that count."""
        return sum(self.parts.values())

    @property
    def goodput(self) -> float | None:
        """Return the share of the stage's time in steps that count, from 0 to 1."""
        return min(1.0, self.steps / self.whole) if self.whole else None

    @property
    def restarts(self) -> int | None:
        """Return how often a worker group was started again; None where it is not known."""
        return self.starts - 1 if self.starts else None


def goodput(times: Sequence[StageTime]) -> float | None:
    """Return the goodput of all stages together; None where a stage's time is not known."""
    whole = [time.whole for time in times if time.whole]
    if not whole or len(whole) < len(times):
        return None
    return min(1.0, sum(time.steps for time in times) / sum(whole))


@dataclass(frozen=True)
class History:
    """The time and the metrics of the last stages of a run.

    losses: of every step that the trunk stands on, by its tokens.
    times: where the time of every trained stage went.
    curves: the values of every metric that the report draws, by the metric's name.
    """

    losses: tuple[CurvePoint, ...] = ()
    times: tuple[StageTime, ...] = ()
    curves: Mapping[str, tuple[CurvePoint, ...]] = field(default_factory=dict)


def read_history(store: Store, state: RunState, sequence_length: int) -> History:
    """Read the history of the last `SHOWN_STAGES` stages, as far as they have a checkpoint.

    Args:
        store: the run's store.
        state: the run as of the last read of the ledger.
        sequence_length: tokens of one sequence, to place a step on the axis of tokens.
    """
    losses: list[CurvePoint] = []
    times: list[StageTime] = []
    curves: defaultdict[str, list[CurvePoint]] = defaultdict(list)
    for stage in state.stages[-SHOWN_STAGES:]:
        _, rows = kept_rows(store, stage.folder)
        before = tokens_until(state, stage, stage.first_step, sequence_length)
        per_step = stage.mix.global_batch * sequence_length
        for row in rows:
            tokens = before + (row["step"] - stage.first_step) * per_step
            losses.append(CurvePoint(tokens, row["loss"], stage.name))
            for metric, value in metrics_in(row):
                if metric.figure:
                    curves[metric.name].append(CurvePoint(tokens, value, stage.name))
        if stage.name in state.ends and rows:
            starts = len(read_starts(store, stage.folder))
            times.append(stage_time(stage, state.times.get(stage.name, {}), rows, starts))
    return History(
        tuple(losses), tuple(times), {name: tuple(points) for name, points in curves.items()}
    )


def stage_time(
    stage: Stage, times: Mapping[str, str], rows: Sequence[Mapping[str, Any]], starts: int
) -> StageTime:
    """Divide a stage's time; what is outside its steps is starts, repeated steps and waiting.

    Args:
        stage: the stage.
        times: UTC times at which it was `started` and `trained`, where they are known.
        rows: the steps that count, as the workers logged them.
        starts: number of worker-group starts.
    """
    parts: Counter[str] = Counter()
    for row in rows:
        # Checkpoints of earlier versions know the speed of a step, and not its parts.
        seconds = row.get("seconds") or {"other": row["batch_tokens"] / row["tokens_per_second"]}
        parts.update(seconds)
    return StageTime(stage.name, _between(times), dict(parts), starts)


def _between(times: Mapping[str, str]) -> float | None:
    if not {"started", "trained"} <= times.keys():
        return None
    begun, ended = (datetime.fromisoformat(times[name]) for name in ("started", "trained"))
    return (ended - begun).total_seconds()

"""How a run's stages went, step by step: read from the metrics beside their checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from perennial.evaluation.curves import LossPoint, StageTime
from perennial.stages.starts import read_starts
from perennial.stages.training import kept_rows

if TYPE_CHECKING:
    from perennial.stages.machine import RunState, Stage
    from perennial.store import Store


@dataclass(frozen=True)
class History:
    """losses: of every step that the trunk stands on, by its tokens.
    times: where the time of every trained stage went.
    """

    losses: tuple[LossPoint, ...] = ()
    times: tuple[StageTime, ...] = ()


def read_history(store: Store, state: RunState, tokens_per_step: int) -> History:
    """The history of the stages that have a checkpoint."""
    losses: list[LossPoint] = []
    times: list[StageTime] = []
    for stage in state.stages:
        _, rows = kept_rows(store, stage.folder)
        losses += [
            LossPoint(row["step"] * tokens_per_step, row["loss"], stage.name) for row in rows
        ]
        if stage.name in state.ends and rows:
            starts = len(read_starts(store, stage.folder))
            times.append(stage_time(stage, state.times.get(stage.name, {}), rows, starts))
    return History(tuple(losses), tuple(times))


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

"""Compute the gauges of a run: activity, queue and data lag. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from perennial.runs.actions import Order
from perennial.runs.state import RunState

_WAITS = ("landed", "ingesting", "ready")
_IN_HAND = ("ingesting", "training", "trained", "evaluating", "evaluated", "gated", "failed")
IDLE = "waiting"


@dataclass(frozen=True)
class Gauges:
    """One look at the controller.

    doing: such as `training french`; `waiting` when nothing is begun.
    queue: corpora that landed and whose stage was not begun, in the order of landing.
    lag_seconds: age of the oldest data that landed and that the trunk has not trained; 0 without.
    """

    doing: str
    queue: tuple[str, ...]
    lag_seconds: float


def read_gauges(
    state: RunState, landed_at: Mapping[str, datetime], now: datetime, order: Order | None = None
) -> Gauges:
    """Compute the gauges of a run.

    Args:
        state: the run as of the last read of the ledger.
        landed_at: landing times of the corpora in the inbox, by name, in the order of landing.
        now: the time from which the lag is counted.
        order: which corpora become stages; the others are not in the queue.
    """
    trains = (order or Order()).trains
    in_hand = [corpus for corpus in state.corpora.values() if corpus.state in _IN_HAND]
    doing = IDLE
    if in_hand:
        doing = f"{in_hand[-1].state} {' and '.join(state.together(in_hand[-1].name))}"
    recorded = [name for name, corpus in state.corpora.items() if corpus.state in _WAITS]
    queued = (*recorded, *(name for name in landed_at if name not in state.corpora))
    queue = tuple(name for name in queued if trains(name))
    training = [c.name for c in state.corpora.values() if c.stands_at == "training"]
    untrained = [landed_at[name] for name in (*queue, *training) if name in landed_at]
    lag = max(((now - at).total_seconds() for at in untrained), default=0.0)
    return Gauges(doing, queue, max(lag, 0.0))

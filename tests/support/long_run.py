"""A run of many stages that nobody trained: the ledger that the real decisions write."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from perennial.config import RunSpec
from perennial.evaluation import HeldoutLoss
from perennial.runs.events import (
    Evaluated,
    Evaluating,
    Event,
    Ingesting,
    Landed,
    Opened,
    Passed,
    Ready,
    TookOver,
    Trained,
)
from perennial.runs.ledger import Ledger
from perennial.runs.stage_planner import decide_stage
from perennial.runs.state import RunState
from perennial.store import Store, open_store
from perennial.training.checkpoint.manifest import folder_of
from tests.support.event_factory import AT
from tests.support.tiny_run import tiny_run

ROWS = 800


def long_spec(folder: Path, changes: dict[str, Any] | None = None) -> RunSpec:
    """The run file of `tiny_run`, with sections of `changes` in place of its own."""
    return RunSpec.model_validate(tiny_run(folder) | (changes or {}))


def stage_events(
    spec: RunSpec, state: RunState, cells: int | None = None, skipped: tuple[int, ...] = ()
) -> Iterator[Event]:
    """The next corpus, led to the end of its stage; each event is to be applied before the next.

    Args:
        spec: the run file.
        state: the run.
        cells: number of earlier corpora that the evaluation measures; None for all of them.
        skipped: trunk steps whose batch the stage skips.
    """
    name = f"corpus-{len(state.corpora):05d}"
    yield Landed(at=AT, corpus=name, size_bytes=1)
    yield Ingesting(at=AT, corpus=name)
    yield Ready(at=AT, corpus=name, sequences=ROWS, tokens=ROWS * 128, digest="ab" * 32)
    yield decide_stage(spec, state, name, AT, "r", reschedule=False)
    stage = state.stages[-1]
    end = folder_of(stage.folder, stage.last_step)
    yield Trained(at=AT, corpus=name, checkpoint=end, step=stage.last_step, skipped=skipped)
    yield Evaluating(at=AT, corpus=name)
    earlier = list(state.corpora)[:-1]
    measured = [*earlier[:cells], name]
    losses = {each: loss_on(each, 3.0 + len(measured) / 100) for each in measured}
    yield Evaluated(at=AT, corpus=name, losses=losses)
    yield Passed(at=AT, corpus=name, verdicts=[])


def loss_on(corpus: str, nats: float) -> HeldoutLoss:
    """A held-out loss, with as many digits as a real one."""
    return HeldoutLoss(corpus, nats / 3 * 3, nats / 7, 5, 1234, 5678, nats / 97, nats / 991)


class LongRun:
    """A run that grows stage by stage in `folder`/store.

    Args:
        folder: for the store.
        cells: as for `stage_events`.
        changes: as for `long_spec`.
    """

    def __init__(
        self, folder: Path, cells: int | None = None, changes: dict[str, Any] | None = None
    ) -> None:
        self.spec = long_spec(folder, changes)
        self.store: Store = open_store(self.spec.store)
        self.ledger = Ledger(self.store)
        self._cells = cells
        self.ledger.append(Opened(at=AT, spec=self.spec.model_dump(mode="json")))
        self.ledger.append(TookOver(at=AT, epoch=1, controller="test:1"))

    def grow(self, stages: int) -> LongRun:
        """Land and train corpora until the trunk has so many stages."""
        while len(self.ledger.state.stages) < stages:
            for event in stage_events(self.spec, self.ledger.state, self._cells):
                self.ledger.append(event)
        return self


def count_calls(work: Callable[[], object]) -> int:
    """The number of functions that `work` calls, those of the interpreter and of C included."""
    calls = 0

    def count(_frame: FrameType, happening: str, _what: object) -> None:
        nonlocal calls
        calls += happening in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls

"""Callbacks on what happens to a run: a stage starts, ends or is stopped, a release is made."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from perennial.controller.observer import RunObserver
from perennial.errors import InputError
from perennial.runs import summary

if TYPE_CHECKING:
    from perennial.controller.observer import ObservedRun
    from perennial.evaluation import HeldoutLoss
    from perennial.runs.events import Released, Releasing
    from perennial.runs.state import Stage

logger = logging.getLogger("perennial.api")

EventName = Literal["stage_started", "evaluated", "gated", "released"]


@dataclass(frozen=True)
class RunEvent:
    """Something that happened to a run, once it is in the run's ledger.

    Attributes:
        name: the kind of event.
        run: name of the run.
        subject: the stage or release that it is about.
        corpora: new corpora of the stage; none for a release.
        step: trunk step at which the stage starts or ends; for a release, the end of its anneal.
        losses: held-out nats per token by corpus; none where nothing was measured.
        verdicts: of the gates that stopped a stage, each with `gate`, `subject`, `value`, `bound`
            and whether it `holds`.
        folder: URL of a release's Hugging Face folder; "" for a stage.
    """

    name: EventName
    run: str
    subject: str
    corpora: tuple[str, ...] = ()
    step: int = 0
    losses: Mapping[str, float] = field(default_factory=dict)
    verdicts: Sequence[Mapping[str, Any]] = ()
    folder: str = ""


Callback = Callable[[RunEvent], object]


class Callbacks(RunObserver):
    """Functions that are called on events, in the order in which they were added.

    One that raises is logged with its traceback, and changes nothing of the run.
    """

    def __init__(self) -> None:
        self._callbacks: defaultdict[EventName, list[Callback]] = defaultdict(list)

    def add(self, event: EventName, callback: Callback) -> None:
        """Call a function on events of a kind.

        Raises:
            InputError: there is no such kind.
        """
        if event not in get_args(EventName):
            names = ", ".join(get_args(EventName))
            raise InputError(
                "Run.on", "event", f"there is no event {event!r}", f"its events: {names}",
                code="event-unknown",
            )  # fmt: skip
        self._callbacks[event].append(callback)

    def stage_started(self, work: ObservedRun, stage: Stage) -> None:
        """Call what waits for a stage that starts."""
        self._call(RunEvent("stage_started", *_of_stage(work, stage), step=stage.first_step))

    def stage_evaluated(self, work: ObservedRun, stage: Stage) -> None:
        """Call what waits for a stage that was evaluated."""
        losses = _nats(work.state.losses[stage.name])
        step = stage.last_step
        self._call(RunEvent("evaluated", *_of_stage(work, stage), step=step, losses=losses))

    def stage_gated(self, work: ObservedRun, stage: Stage) -> None:
        """Call what waits for a stage that a gate stopped."""
        gated = summary.gated(work.spec, work.state)
        event = RunEvent(
            "gated",
            *_of_stage(work, stage),
            step=stage.last_step,
            losses=_nats(work.state.losses[stage.name]),
            verdicts=gated["verdicts"] if gated else (),
        )
        self._call(event)

    def release_made(self, work: ObservedRun, claimed: Releasing, released: Released) -> None:
        """Call what waits for a release."""
        event = RunEvent(
            "released",
            work.spec.name,
            released.name,
            step=claimed.step + released.steps,
            losses=_nats(released.losses),
            folder=f"{work.store.url}/{released.folder}",
        )
        self._call(event)

    def _call(self, event: RunEvent) -> None:
        for callback in self._callbacks[event.name]:
            try:
                callback(event)
            except Exception:
                logger.exception("a callback on %s failed; the run goes on", event.name)


def _of_stage(work: ObservedRun, stage: Stage) -> tuple[str, str, tuple[str, ...]]:
    return work.spec.name, stage.name, stage.corpora


def _nats(losses: Mapping[str, HeldoutLoss]) -> dict[str, float]:
    return {corpus: loss.nats_per_token for corpus, loss in losses.items()}

"""Order the stages that have not passed: one may train while the one before it is measured. Pure.

The second one starts from the end of the first. Where a gate stops the first, or its corpus leaves
it, the second is abandoned: its corpora are ready again, and another stage takes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from perennial.errors import InvalidTransition
from perennial.runs.entities import Stage
from perennial.runs.events import CorpusEvent, Evaluated, Evaluating, Gated, Passed, Started
from perennial.runs.transitions import FINISHED, ON_THE_TRUNK, CorpusState
from perennial.runs.trunk.trunk_state import TrunkState

MEASURED: tuple[CorpusState, ...] = ("trained", "evaluating", "evaluated")
"""States of a corpus whose stage is trained, and not judged yet."""
_MOST = 2


def list_unfinished(state: TrunkState) -> list[Stage]:
    """Return the stages at the trunk's end that have not passed, in their order."""
    last = state.stages[-_MOST:]
    return [stage for stage in last if state.corpora[stage.corpora[0]].state not in FINISHED]


def check_order(state: TrunkState, event: CorpusEvent) -> None:
    """Raise InvalidTransition for a stage that begins, or is measured, before its time."""
    unfinished = list_unfinished(state)
    if not unfinished:
        return
    first = state.corpora[unfinished[0].corpora[0]]
    is_early = isinstance(event, Started) and (
        len(unfinished) == _MOST or first.stands_at not in MEASURED
    )
    is_measured_early = isinstance(event, Evaluating | Evaluated | Passed | Gated) and any(
        event.corpus in stage.corpora for stage in unfinished[1:]
    )
    if is_early or is_measured_early:
        behind = f"behind {unfinished[0].name}, which is {first.state}"
        raise InvalidTransition(event.corpus, behind, event.kind, first.event_kinds)


def take_off(state: TrunkState, unfinished: Sequence[Stage], event: CorpusEvent) -> None:
    """Take the stages off the trunk that an event ends.

    Args:
        state: the run; its corpora have followed the event.
        unfinished: what `list_unfinished` gave before the event.
        event: what happened.
    """
    for place, stage in enumerate(unfinished):
        leaves = state.corpora[stage.corpora[0]].stands_at not in ON_THE_TRUNK
        if not leaves and not (isinstance(event, Gated) and event.corpus in stage.corpora):
            continue
        for _ in unfinished[place + 1 :]:
            abandon(state)
        if leaves:
            state.abandoned.append(state.stages.pop())
            state.resumption = None  # of a plan that follows it
        return


def abandon(state: TrunkState) -> None:
    """Take the last stage off the trunk; its corpora can be trained by another one."""
    stage = state.stages.pop()
    state.abandoned.append(stage)
    for name in stage.corpora:
        corpus = state.corpora[name]
        state.move(corpus, "freed")
        corpus.attempt, corpus.next_try = 0, None
        corpus.reason = corpus.code = ""

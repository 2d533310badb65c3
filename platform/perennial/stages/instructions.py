"""What to do next: the one right thing, from the folded state and what is seen outside. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from perennial.stages.machine import Corpus, RunState

Verb = Literal[
    "record-landing", "ingest", "start", "train", "evaluate", "judge", "retry", "release", "wait"
]

_GO_ON: dict[str, Verb] = {
    "training": "train",
    "trained": "evaluate",
    "evaluating": "evaluate",
    "evaluated": "judge",
}


@dataclass(frozen=True)
class Instruction:
    """What the shell must do next, and to which corpus or release.

    until: with `wait`, the UTC time at which there is something to do again; "" waits for a person.
    """

    verb: Verb
    subject: str
    until: str = ""


@dataclass(frozen=True)
class Outside:
    """What the ledger does not know.

    inbox: names of the complete corpora in the inbox, in the order in which they landed.
    now: UTC time, ISO 8601.
    due: names of the releases that the policy wants now.
    """

    inbox: Sequence[str] = ()
    now: str = "9999-12-31T00:00:00+00:00"
    due: Sequence[str] = ()


@dataclass(frozen=True)
class Order:
    """In which order corpora become stages.

    first: these, in this order and each waiting for the one before it; None is by landing.
    priority: by corpus; the higher is taken first, among equals the one that landed first.
    only: corpora that become stages; any other is ingested and no more. None is all.
    """

    first: Sequence[str] = ()
    priority: Mapping[str, int] = field(default_factory=dict)
    only: Sequence[str] | None = None

    def trains(self, name: str) -> bool:
        """Whether a corpus becomes a stage."""
        return self.only is None or name in self.only


def next_instruction(
    state: RunState, outside: Outside, order: Order | None = None
) -> Instruction | None:
    """The one right thing to do, or None when the run has caught up.

    What was begun on the trunk is finished first, then releases, then landings are recorded, then
    stages follow in order. A gated stage, or one that failed for good, stops the line: only
    landings are recorded.
    """
    order = order or Order()
    at_work = _at_work(state)
    if at_work is not None and at_work.state in _GO_ON:
        return Instruction(_GO_ON[at_work.state], at_work.name)
    if at_work is None and outside.due:
        return Instruction("release", outside.due[0])
    for name in outside.inbox:
        if name not in state.corpora:
            return Instruction("record-landing", name)
    if at_work is not None:
        return _again(at_work, outside.now)
    return _next_stage(state, outside.now, order)


def _at_work(state: RunState) -> Corpus | None:
    """The corpus whose stage the trunk is in."""
    if not state.stages:
        return None
    corpus = state.corpora[state.stages[-1].corpus]
    return None if corpus.state in ("passed", "retired") else corpus


def _again(corpus: Corpus, now: str) -> Instruction:
    """What to do about a corpus that failed or is gated."""
    if corpus.next_try is None:
        return Instruction("wait", corpus.name)
    if datetime.fromisoformat(corpus.next_try) <= datetime.fromisoformat(now):
        return Instruction("retry", corpus.name)
    return Instruction("wait", corpus.name, corpus.next_try)


def _next_stage(state: RunState, now: str, order: Order) -> Instruction | None:
    """The next corpus in order; those that a person or a later try must free are passed over."""
    waiting: list[Instruction] = []
    for corpus in in_order(state, order):
        match corpus.state:
            case "landed" | "ingesting":
                return Instruction("ingest", corpus.name)
            case "ready" if order.trains(corpus.name):
                return Instruction("start", corpus.name)
            case "failed":
                told = _again(corpus, now)
                if told.verb == "retry":
                    return told
                waiting += [told] if told.until else []
    return min(waiting, key=lambda wait: wait.until, default=None)


def in_order(state: RunState, order: Order) -> list[Corpus]:
    """Corpora that may become stages, next first; those that must wait for another are left out."""
    named = list(order.first)
    for index, name in enumerate(named):
        if name not in state.corpora:
            # Nothing that is named after it, or not named at all, may overtake it.
            return [c for c in state.corpora.values() if c.name in named[:index]]
    landed = list(state.corpora.values())
    place = {corpus.name: index for index, corpus in enumerate(landed)}
    return sorted(
        landed,
        key=lambda c: (
            named.index(c.name) if c.name in named else len(named),
            -order.priority.get(c.name, 0),
            place[c.name],
        ),
    )

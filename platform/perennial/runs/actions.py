"""Plan the next action from the ledger's state and what is outside of it. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Literal

from perennial.runs.state import Corpus, RunState
from perennial.runs.trunk.rewinding import resuming
from perennial.runs.unattended.limits import LimitReached

Verb = Literal[
    "record-landing",
    "ingest",
    "start",
    "train",
    "evaluate",
    "judge",
    "retry",
    "retry-with-more-replay",
    "search",
    "take-trial",
    "release",
    "wait",
]

Answer = Literal["retry-with-more-replay", "search", "take-trial"]
"""What a controller does about a stage that a gate stopped, where a user need not decide: train it
again with more replay, train another trial of a search, or make a trial the stage."""

_GO_ON: dict[str, Verb] = {
    "training": "train",
    "trained": "evaluate",
    "evaluating": "evaluate",
    "evaluated": "judge",
}


@dataclass(frozen=True)
class Action:
    """An action of the controller, and the corpus or release that it is about.

    joined: with `start`, the corpora that become one stage with the subject, in their order.
    until: with `wait`, the UTC time of the next action; "" waits for a user.
    reason: with `wait`, the limit that is waited for; "" where it is another try.
    """

    verb: Verb
    subject: str
    until: str = ""
    joined: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Outside:
    """The inputs of a plan that are not in the ledger.

    inbox: names of the complete corpora in the inbox, in the order in which they landed.
    now: UTC time, ISO 8601.
    due: names of the releases that the policy wants now.
    answer: to the gate that stopped a stage; None where a user must decide.
    limit: lets no stage begin now; None where one may.
    """

    inbox: Sequence[str] = ()
    now: str = "9999-12-31T00:00:00+00:00"
    due: Sequence[str] = ()
    answer: Answer | None = None
    limit: LimitReached | None = None


@dataclass(frozen=True)
class Order:
    """The order in which corpora become stages, and which of them become one stage.

    first: these, in this order; the others follow in the order of landing.
    priority: by corpus; the higher is taken first, among equals the one that landed first.
    only: corpora that become stages; the others are only ingested. None is all.
    most_corpora, most_tokens: limits of a stage of several corpora; 1 corpus merges nothing.
    alone: corpora that keep a stage of their own, as those in `first` do.
    proxies: corpora that are replayed and never become stages. The first stage waits for them.
    approval: whether a stage waits until a user accepts its corpus.
    beside: whether a stage is measured while the next one trains.
    extending: corpora, or globs of them, that bring entries to the tokenizer, or have ids that were
        brought. One is not tokenised before the entries of another are in force, or out of it:
        theirs come after those.
    """

    first: Sequence[str] = ()
    priority: Mapping[str, int] = field(default_factory=dict)
    only: Sequence[str] | None = None
    most_corpora: int = 1
    most_tokens: float = math.inf
    alone: Collection[str] = ()
    proxies: Sequence[str] = ()
    extending: Collection[str] = ()
    approval: bool = False
    beside: bool = False

    def trains(self, name: str) -> bool:
        """Return whether a corpus becomes a stage."""
        return name not in self.proxies and (self.only is None or name in self.only)

    def may_begin(self, corpus: Corpus) -> bool:
        """Return whether no user has still to accept the stage of a corpus."""
        return corpus.approved or not self.approval

    def like(self, one: Corpus, other: Corpus) -> bool:
        """Return whether two corpora may share a stage: same priority, same settings."""
        alone = {*self.first, *self.alone} & {one.name, other.name}
        ranks = {self.priority.get(corpus.name, 0) for corpus in (one, other)}
        return not alone and len(ranks) == 1 and one.replay == other.replay


def next_action(state: RunState, outside: Outside, order: Order | None = None) -> Action | None:
    """Plan the next action.

    The stage that was begun is finished first, then come releases, then landings, then the stage
    whose plan goes on after a rewind, then the next stage in order. A gated stage, or one that
    failed for the last time, pauses the run: only landings are recorded then. Where the order says
    so, the next stage begins once this one is trained, and this one is measured while that trains.

    Args:
        state: the run as of the last read of the ledger.
        outside: inbox, time and due releases.
        order: which corpora become stages, and in which order; default the order of landing.

    Returns:
        The action, or None when there is nothing left to do.
    """
    order = order or Order()
    at_work = state.corpora[state.at_work.corpora[0]] if state.at_work else None
    ahead = _ahead(state, outside, order) if order.beside else None
    if ahead is not None:
        return ahead
    if at_work is not None and at_work.state in _GO_ON:
        return Action(_GO_ON[at_work.state], at_work.name)
    if at_work is None and outside.due:
        return Action("release", outside.due[0])
    for name in outside.inbox:
        if name not in state.corpora:
            return Action("record-landing", name)
    if at_work is not None and at_work.state == "gated" and outside.answer is not None:
        return Action(outside.answer, at_work.name)
    if at_work is not None:
        return _again(at_work, outside.now)
    return _next_stage(state, outside, order)


def _ahead(state: RunState, outside: Outside, order: Order) -> Action | None:
    """Plan what comes before the measurement of the stage at work, or goes on beside it; or None.

    That is a release of the stage before it, which is due until this one passes, and the next
    stage. Its corpus may need entries of the tokenizer that are not in force before this one
    passes: then it waits.
    """
    unfinished = [state.corpora[stage.corpora[0]] for stage in state.unfinished]
    if not unfinished:
        return None
    first, *behind = unfinished
    if behind:
        return Action("train", behind[0].name) if behind[0].state == "training" else None
    if first.state not in ("trained", "evaluating"):
        return None
    if outside.due:
        return Action("release", outside.due[0])
    for name in outside.inbox:
        if name not in state.corpora:
            return Action("record-landing", name)
    if state.growing:
        return None
    following = _next_stage(state, outside, order)
    begins = following is not None and following.verb in ("ingest", "start")
    return following if begins else None


def next_ingest(state: RunState, outside: Outside, order: Order | None = None) -> Action | None:
    """Plan the next action of a process that tokenises and trains nothing.

    It runs ahead of training: over everything that landed, in the order in which it will be
    trained, whatever the trunk is at.

    Args:
        state, outside, order: as for `next_action`; releases have no influence.

    Returns:
        The action, or None when everything that may be tokenised is.
    """
    for name in outside.inbox:
        if name not in state.corpora:
            return Action("record-landing", name)
    waiting: list[Action] = []
    for corpus in not_ingested(state, order or Order()):
        if corpus.state != "failed":
            return Action("ingest", corpus.name)
        action = _again(corpus, outside.now)
        if action.verb == "retry":
            return action
        waiting += [action] if action.until else []
    return min(waiting, key=lambda wait: wait.until, default=None)


def not_ingested(state: RunState, order: Order) -> list[Corpus]:
    """Return the corpora that are to be tokenised, or failed at it, in the order of training."""
    # Only training waits for a corpus that has not landed yet.
    landed = replace(order, first=[name for name in order.first if name in state.corpora])
    queue = [c for c in in_order(state, landed) if c.stands_at in ("landed", "ingesting")]
    return [corpus for corpus in queue if not waits_to_extend(state, order, corpus)]


def waits_to_extend(state: RunState, order: Order, corpus: Corpus) -> bool:
    """Return whether a corpus brings entries to the tokenizer, or has ids that one brought, while
    another's are not settled.
    """
    if all(name == corpus.name for name in state.growing):
        return False
    return any(fnmatchcase(corpus.name, pattern) for pattern in order.extending)


def _again(corpus: Corpus, now: str) -> Action:
    """Plan what to do about a corpus that failed or is gated: retry, or wait."""
    if corpus.next_try is None:
        return Action("wait", corpus.name)
    if datetime.fromisoformat(corpus.next_try) <= datetime.fromisoformat(now):
        return Action("retry", corpus.name)
    return Action("wait", corpus.name, corpus.next_try)


def unapproved(state: RunState, order: Order) -> list[str]:
    """Return the corpora whose stages wait until a user accepts them, in order."""
    ready = (c for c in in_order(state, order) if c.state == "ready" and order.trains(c.name))
    return [corpus.name for corpus in ready if not order.may_begin(corpus)]


def _next_stage(state: RunState, outside: Outside, order: Order) -> Action | None:
    """Plan for the next corpus in order; skip those that wait for a user or for a later time."""
    again = resuming(state)
    if again is not None:
        first = state.corpora[again.corpora[0]]
        if first.state == "failed":
            return _again(first, outside.now)
        return Action("start", first.name, joined=again.corpora[1:])
    waiting: list[Action] = []
    queue = in_order(state, order)
    for place, corpus in enumerate(queue):
        match corpus.state:
            case "landed" | "ingesting" if not waits_to_extend(state, order, corpus):
                return Action("ingest", corpus.name)
            case "ready" if order.trains(corpus.name) and not awaited_proxies(state, order):
                if not order.may_begin(corpus):
                    continue
                limit = outside.limit
                if limit is None:
                    return _start(corpus, queue[place + 1 :], order)
                waiting.append(Action("wait", corpus.name, limit.until, reason=limit.reason))
            case "failed":
                action = _again(corpus, outside.now)
                if action.verb == "retry":
                    return action
                waiting += [action] if action.until else []
    return min(waiting, key=lambda wait: wait.until, default=None)


def awaited_proxies(state: RunState, order: Order) -> list[str]:
    """Return the proxy corpora for which the first stage waits; none once it was begun.

    It waits until they have landed and are tokenised, or a user holds or refuses them.
    """
    known = {name: state.corpora[name].state for name in order.proxies if name in state.corpora}
    waits = ("unknown", "landed", "ingesting", "failed")
    if state.stages:
        return []
    return [name for name in order.proxies if known.get(name, "unknown") in waits]


def _start(first: Corpus, behind: Sequence[Corpus], order: Order) -> Action:
    """Start the stage of a ready corpus, with the corpora behind it that may join it.

    Those are ingested first. Order is preserved: batching stops at the first corpus that cannot
    join, except for corpora that are not to be trained now.
    """
    joined: list[Corpus] = []
    tokens = first.tokens
    for corpus in behind:
        waits = corpus.state in ("landed", "ingesting", "ready")
        if not waits or not order.trains(corpus.name):
            continue
        if len(joined) + 1 >= order.most_corpora or not order.like(first, corpus):
            break
        tokens += corpus.tokens
        if tokens > order.most_tokens:
            break
        if corpus.state != "ready":
            return Action("ingest", corpus.name)
        if order.may_begin(corpus):
            joined.append(corpus)
    return Action("start", first.name, joined=tuple(corpus.name for corpus in joined))


def in_order(state: RunState, order: Order) -> list[Corpus]:
    """Return the corpora that may become stages, next first, without those that must wait."""
    named = list(order.first)
    for index, name in enumerate(named):
        if name not in state.corpora:
            # Corpora that are named after it, or not named, must not be trained before it.
            return [c for c in state.corpora.values() if c.name in named[:index]]
    landed = list(state.corpora.values())
    place = {corpus.name: index for index, corpus in enumerate(landed)}
    return sorted(
        landed,
        key=lambda c: (
            c.name not in order.proxies,  # of which every stage replays a part
            named.index(c.name) if c.name in named else len(named),
            -order.priority.get(c.name, 0),
            place[c.name],
        ),
    )

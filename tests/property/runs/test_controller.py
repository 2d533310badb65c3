"""The controller under every interleaving: arrivals, duplicates, kills, races, people (I4)."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import get_args

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from perennial.config import RunSpec
from perennial.errors import InputError, InvalidTransition, LostRace
from perennial.runs import events
from perennial.runs.actions import Action, Answer, Order, Outside, next_action, next_ingest
from perennial.runs.ledger import Ledger
from perennial.runs.release_policy import due
from perennial.runs.state import RunState
from perennial.runs.trunk.rewinding import resuming
from perennial.store import open_store
from tests.support.event_factory import AT, TOKENS, event_of, rewound
from tests.support.tiny_run import tiny_run

CORPORA = ("a", "b", "c", "d")
LATER = "2026-01-01T00:01:00+00:00"
ORDERS = [
    Order(),
    Order(most_corpora=2),
    Order(most_corpora=4, most_tokens=3 * TOKENS),
    Order(most_corpora=3, priority={"c": 1, "d": 1}),
    Order(most_corpora=4, alone={"b"}),
    Order(most_corpora=4, first=["b", "a"]),
    Order(most_corpora=3, proxies=["b"]),
    Order(most_corpora=2, approval=True),
    Order(beside=True),
    Order(most_corpora=2, beside=True),
]
"""one stage a corpus, and several corpora a stage within bounds of every kind; a proxy; approval;
measured beside training"""


def _policies() -> list[RunSpec]:
    specs = []
    for policy in ({}, {"every": "6 steps"}, {"schedule": "0 0 * * *"}):
        document = tiny_run(Path("/nowhere"))
        name = next(iter(policy), "each-stage")
        document["release"] |= {"policy": name} | policy
        specs.append(RunSpec.model_validate(document))
    return specs


POLICIES = _policies()


class Controller:
    """A controller as the shell is one: reads, asks, does, writes; it may die at any of these."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.epoch = 0
        self.step: Action | None = None


class Controllers(RuleBasedStateMachine):
    """Three controllers on one real store, in any order, with people and failures between."""

    @initialize(order=st.sampled_from(ORDERS))
    def open(self, order: Order) -> None:
        self.order = order
        self._folder = tempfile.TemporaryDirectory(prefix="perennial-")
        self.store = open_store(self._folder.name)
        self.inbox: list[str] = []
        self.controllers = [Controller(Ledger(self.store)) for _ in range(3)]
        self.written: list[events.Started] = []

    def teardown(self) -> None:
        if hasattr(self, "_folder"):
            self._folder.cleanup()

    @rule(corpus=st.sampled_from(CORPORA))
    def arrive(self, corpus: str) -> None:
        """A signal; a corpus may be signalled any number of times."""
        if corpus not in self.inbox or len(self.inbox) < 8:
            self.inbox.append(corpus)

    @rule(who=st.integers(0, 2))
    def kill(self, who: int) -> None:
        """kill -9, and a new process in its place that knows nothing."""
        self.controllers[who] = Controller(Ledger(self.store))

    @rule(who=st.integers(0, 2), answer=st.sampled_from([None, *get_args(Answer)]))
    def look(self, who: int, answer: Answer | None) -> None:
        """Read and decide, and be slow to act on it."""
        mine = self.controllers[who]
        mine.ledger.read()
        outside = Outside(self.inbox, LATER, answer=answer)
        mine.step = next_action(mine.ledger.state, outside, self.order)

    @precondition(lambda self: any(c.step for c in self.controllers))
    @rule(who=st.integers(0, 2), outcome=st.sampled_from(["well", "well", "badly", "gated"]))
    def act(self, who: int, outcome: str) -> None:
        """Do what was decided, perhaps long ago."""
        mine = self.controllers[who]
        if mine.step is None or mine.step.verb == "wait":
            return
        if not mine.epoch and not self._take_over(mine):
            return
        step, mine.step = mine.step, None
        for kind in _outcome(mine, step, outcome):
            event = event_of(kind, mine.ledger.state, step.subject, AT, step.joined)
            if not self._write(mine, event):
                return

    @precondition(lambda self: self.order.beside and any(c.step for c in self.controllers))
    @rule(who=st.integers(0, 2), outcome=st.sampled_from(["well", "well", "badly", "gated"]))
    def measure_beside(self, who: int, outcome: str) -> None:
        """Go on with the measurement of a stage while the next one trains."""
        mine = self.controllers[who]
        stages = mine.ledger.state.unfinished
        if not mine.epoch or mine.step is None or mine.step.verb != "train" or len(stages) < 2:
            return
        name = stages[0].corpora[0]
        is_measured = mine.ledger.state.corpora[name].state == "evaluated"
        step = Action("judge" if is_measured else "evaluate", name)
        for kind in _outcome(mine, step, outcome):
            if not self._write(mine, event_of(kind, mine.ledger.state, name, AT)):
                return

    @rule(outcome=st.sampled_from(["well", "well", "badly"]), dies=st.booleans())
    def ingest_beside(self, outcome: str, dies: bool) -> None:
        """A process that only tokenises, whoever trains; it may die in the middle."""
        beside = Controller(Ledger(self.store))
        beside.ledger.read()
        step = next_ingest(beside.ledger.state, Outside(self.inbox, LATER), self.order)
        if step is None or step.verb == "wait":
            return
        kinds = _outcome(beside, step, outcome)
        for kind in kinds[:1] if dies else kinds:
            if not self._write(beside, event_of(kind, beside.ledger.state, step.subject)):
                return

    @rule(
        corpus=st.sampled_from(CORPORA),
        kind=st.sampled_from(
            ["held", "retried", "refused", "retired", "unretired", "accepted", "erased"]
        ),
    )
    def decide(self, corpus: str, kind: str) -> None:
        """A person writes a decision, whoever is in charge."""
        ledger = Ledger(self.store)
        ledger.read()
        try:
            ledger.append(event_of(kind, ledger.state, corpus))
        except InvalidTransition:
            return

    @rule(which=st.integers(0, 3), before_end=st.integers(0, 9), dies=st.booleans())
    def rewind(self, which: int, before_end: int, dies: bool) -> None:
        """A person takes the trunk back, to a stage's end or a step of it; or only takes charge."""
        ledger = Ledger(self.store)
        state = ledger.read()
        there = [*state.stages, *filter(None, [resuming(state)])]
        if not there:
            return
        stage = there[which % len(there)]
        ledger.append(events.TookOver(at=AT, epoch=state.epoch + 1, controller="rewind"))
        with suppress(InvalidTransition):
            if not dies:
                ledger.append(rewound(stage, stage.last_step - before_end))

    def _take_over(self, mine: Controller) -> bool:
        epoch = mine.ledger.state.epoch + 1
        taken = self._write(mine, events.TookOver(at=AT, epoch=epoch, controller="x"))
        mine.epoch = epoch if taken else 0
        return taken

    def _write(self, mine: Controller, event: events.Event) -> bool:
        try:
            mine.ledger.append(event)
        except (LostRace, InvalidTransition):
            mine.ledger.read()
            mine.step = None
            if mine.epoch and mine.ledger.state.epoch != mine.epoch:
                self.controllers[self.controllers.index(mine)] = Controller(Ledger(self.store))
            return False
        if isinstance(event, events.Started):
            self.written.append(event)
        return True

    @invariant()
    def everything_holds(self) -> None:
        """The ledger folds, and what it folds to is sound, after whatever happened."""
        if not hasattr(self, "store"):
            return
        state = Ledger(self.store).read()
        state.validate()
        for name, corpus in state.corpora.items():
            # Only a person or a broken gate gives a corpus another stage: by a retry after a gate
            # or a refusal, by refusing another corpus of its stage, or by taking the trunk back
            # into its stage.
            again = sum(corpus.event_kinds.count(kind) for kind in ("retried", "freed", "resumed"))
            assert corpus.event_kinds.count("started") <= 1 + again, name
            assert corpus.event_kinds.count("landed") == 1
        self._stages_are_as_they_were_written(state)
        for spec in POLICIES:
            self._a_release_is_decided_or_refused(state, spec)

    def _a_release_is_decided_or_refused(self, state: RunState, spec: RunSpec) -> None:
        """Whatever was retired: a policy gives releases, or says in a sentence why it cannot."""
        try:
            wanted = due(spec, state, lambda stage: [stage.last_step], LATER)
        except InputError as undecidable:
            assert undecidable.code == "every-corpus-retired"
            assert state.retired
            return
        for release in wanted:
            assert release.mix is not None
            assert not {s.corpus for s in release.mix.sources} & {*state.retired}

    def _stages_are_as_they_were_written(self, state: RunState) -> None:
        """What was merged stays merged, whoever goes on with it, and within the bounds."""
        told = {stage.name: stage.corpora for stage in state.started_stages}
        written = {e.stage: e.mix.corpora for e in self.written}
        assert told == written
        if state.started_stages:
            assert {*self.order.proxies} <= state.corpora.keys(), "the first stage waited"
        for stage in state.started_stages if self.order.approval else ():
            assert all(state.corpora[name].approved for name in stage.corpora)
        for stage in state.started_stages:
            assert not {*stage.corpora} & {*self.order.proxies}, "a proxy is no stage"
        for corpora in told.values():
            if len(corpora) > 1:
                assert len(corpora) <= self.order.most_corpora
                assert len(corpora) * TOKENS <= self.order.most_tokens
                assert not {*corpora} & {*self.order.first, *self.order.alone}
                assert len({self.order.priority.get(name, 0) for name in corpora}) == 1


def _outcome(mine: Controller, step: Action, outcome: str) -> list[str]:
    corpus = mine.ledger.state.corpora.get(step.subject)
    at = corpus.state if corpus else "unknown"
    works = at in ("ingesting", "training", "evaluating") or step.verb == "search"
    if outcome == "badly" and works:
        return ["failed"]
    match step.verb:
        case "record-landing":
            return ["landed"]
        case "ingest":
            return ["ingesting"] * (at == "landed") + ["ready"]
        case "start":
            return ["started"]
        case "train":
            return ["trained"]
        case "evaluate":
            return ["evaluating"] * (at == "trained") + ["evaluated"]
        case "judge":
            return ["gated" if outcome == "gated" else "passed"]
        case "retry" | "retry-with-more-replay" | "take-trial":
            return ["retried"]
        case _:
            return []


TestControllers = Controllers.TestCase
TestControllers.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

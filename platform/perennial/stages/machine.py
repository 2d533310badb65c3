"""The pure controller: a fold over the ledger, and what to do next.

Events in, instructions out; no I/O, no clock. Every corpus walks one transition table; an event
that the table does not know for the corpus's state raises with the corpus's history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from perennial.mixture import StageMix
from perennial.stages.events import (
    CorpusEvent,
    Evaluated,
    Event,
    Landed,
    Measured,
    Opened,
    Ready,
    Released,
    Scored,
    Started,
    TookOver,
    Trained,
)

CorpusState = Literal["unknown", "landed", "ready", "refused", "training", "trained", "evaluated"]

TRANSITIONS: dict[tuple[CorpusState, str], CorpusState] = {
    ("unknown", "landed"): "landed",
    ("landed", "ready"): "ready",
    ("landed", "refused"): "refused",
    ("ready", "refused"): "refused",
    ("ready", "started"): "training",
    ("training", "trained"): "trained",
    ("trained", "evaluated"): "evaluated",
}


class InvalidTransition(Exception):
    """An event that cannot happen to a corpus in its state; carries the corpus's history."""

    def __init__(self, corpus: str, state: str, event: str, story: Sequence[str]) -> None:
        told = " -> ".join(story) or "nothing yet"
        super().__init__(f"{corpus} is {state} and cannot be {event!r}; its history: {told}")


@dataclass
class Corpus:
    """What the ledger says of one corpus."""

    name: str
    state: CorpusState = "unknown"
    #: kinds of the events that happened to it, in order
    story: list[str] = field(default_factory=list)
    size_bytes: int = 0
    sequences: int = 0
    tokens: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Stage:
    """One stage of the trunk, decided by its `Started` event."""

    name: str
    corpus: str
    first_step: int
    start: str | None
    mix: StageMix
    schedule: dict[str, Any]
    tracking_run: str

    @property
    def last_step(self) -> int:
        """Trunk step after the stage."""
        return self.first_step + self.mix.steps

    @property
    def folder(self) -> str:
        """Key under which the stage's checkpoints lie."""
        return f"checkpoints/{self.name}"


@dataclass
class RunState:
    """The whole run, as the ledger tells it."""

    spec: dict[str, Any] | None = None
    epoch: int = 0
    #: corpora by name, in the order in which they landed
    corpora: dict[str, Corpus] = field(default_factory=dict)
    #: stages in the order of the trunk
    stages: list[Stage] = field(default_factory=list)
    #: checkpoint at the end of each trained stage, by stage name
    ends: dict[str, str] = field(default_factory=dict)
    #: held-out losses after each evaluated stage, by stage name and corpus
    losses: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    releases: list[Released] = field(default_factory=list)
    #: lm-eval scores by release, and the tasks of the run file that gave them
    scores: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    tasks: dict[str, list[str]] = field(default_factory=dict)

    def apply(self, event: Event) -> None:
        """Fold one event in. Raises InvalidTransition when it cannot follow."""
        match event:
            case Opened():
                if self.spec is not None:
                    raise InvalidTransition("the run", "open", "opened", ["opened"])
                self.spec = event.spec
            case TookOver():
                if event.epoch != self.epoch + 1:
                    raise InvalidTransition("the run", f"at epoch {self.epoch}", event.kind, [])
                self.epoch = event.epoch
            case Released():
                self.releases.append(event)
            case Measured():
                self.losses[event.stage] = event.losses | self.losses[event.stage]
            case Scored():
                self.scores.setdefault(event.release, []).extend(event.scores)
                self.tasks.setdefault(event.release, []).extend(event.tasks)
            case _:
                self._apply_to_corpus(event)

    def _apply_to_corpus(self, event: CorpusEvent) -> None:
        corpus = self.corpora.get(event.corpus) or Corpus(event.corpus)
        target = TRANSITIONS.get((corpus.state, event.kind))
        if target is None:
            raise InvalidTransition(corpus.name, corpus.state, event.kind, corpus.story)
        corpus.state = target
        corpus.story.append(event.kind)
        self.corpora[corpus.name] = corpus
        match event:
            case Landed():
                corpus.size_bytes = event.size_bytes
            case Ready():
                corpus.sequences, corpus.tokens = event.sequences, event.tokens
            case Started():
                self._start(event)
            case Trained():
                self.ends[self.stage_of(event.corpus).name] = event.checkpoint
            case Evaluated():
                self.losses[self.stage_of(event.corpus).name] = event.losses
            case _:
                corpus.reason = event.reason

    def _start(self, event: Started) -> None:
        mix = StageMix.from_dict(event.mix)
        self.stages.append(
            Stage(
                event.stage,
                event.corpus,
                event.first_step,
                event.start,
                mix,
                event.schedule,
                event.tracking_run,
            )
        )

    def stage_of(self, corpus: str) -> Stage:
        """The stage of a corpus that was started."""
        return next(stage for stage in self.stages if stage.corpus == corpus)

    @property
    def history(self) -> list[StageMix]:
        """The mixes of all stages, in the order of the trunk."""
        return [stage.mix for stage in self.stages]

    def validate(self) -> None:
        """Check what must hold after any sequence of events; AssertionError names what does not."""
        trained = [name for name, c in self.corpora.items() if "started" in c.story]
        assert sorted(trained) == sorted(s.corpus for s in self.stages), "one corpus, one stage"
        running = [c.name for c in self.corpora.values() if c.state in ("training", "trained")]
        assert len(running) <= 1, f"one stage at a time, not {running}"
        step = 0
        for index, stage in enumerate(self.stages):
            assert stage.first_step == step, f"{stage.name} begins where the trunk stands"
            assert stage.name.startswith(f"{index:02d}-"), f"{stage.name} is stage {index}"
            before = self.ends.get(self.stages[index - 1].name) if index else None
            assert stage.start == before, f"{stage.name} starts from the trunk's end"
            step = stage.last_step
        for corpus in self.corpora.values():
            assert corpus.state in get_args(CorpusState)


@dataclass(frozen=True)
class Instruction:
    """What the shell must do next, and to which corpus."""

    verb: Literal["record-landing", "ingest", "start", "train", "evaluate"]
    corpus: str


def next_instruction(state: RunState, inbox: Sequence[str]) -> Instruction | None:
    """The one right thing to do, or None when the run has caught up.

    inbox: names of the complete corpora in the inbox, in the order in which they landed.
    What was begun is finished first; then stages follow in the order of landing.
    """
    in_state = {corpus.state: corpus.name for corpus in reversed(state.corpora.values())}
    if "training" in in_state:
        return Instruction("train", in_state["training"])
    if "trained" in in_state:
        return Instruction("evaluate", in_state["trained"])
    for name in inbox:
        if name not in state.corpora:
            return Instruction("record-landing", name)
    for corpus in state.corpora.values():
        if corpus.state == "landed":
            return Instruction("ingest", corpus.name)
        if corpus.state == "ready":
            return Instruction("start", corpus.name)
    return None

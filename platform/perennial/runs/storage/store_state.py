"""Fold what the ledger says of its store. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from pydantic import JsonValue

from perennial.errors import InvalidTransition
from perennial.runs.entities import Corpus
from perennial.runs.storage.store_events import (
    AnyStoreEvent,
    EventRecord,
    Forked,
    LetGo,
    Mended,
    Moved,
    Upgraded,
)
from perennial.runs.trunk.trunk_state import TrunkState
from perennial.runs.trunk.unfinished import abandon, list_unfinished

_LEFT_BEHIND = ("releasing", "releases", "branches", "scores", "tasks", "aliases", "searches")
"""fields of the state that are about the other run alone, behind a fork"""


class ForkedState(TrunkState, Protocol):
    """The part of the state of a run that a fork changes, see `perennial.runs.state`."""

    spec: dict[str, JsonValue] | None
    lease: str
    ingest_lease: str


@dataclass
class StoreState:
    """A run's store, as of the ledger."""

    #: what names the store wherever it lies; "" where an older version began the run
    id: str = ""
    #: what names the store of the run that this one left; "" for one that began by itself
    parent: str = ""
    #: the checkpoint at which it did: stage and step
    left_at: tuple[str, int] = ("", 0)
    #: URL of the store in which the run goes on; "" where it goes on here
    moved_to: str = ""
    #: keys of folders that the ledger names, and that are not in the store by intention
    absent: set[str] = field(default_factory=set)

    def check(self, event: EventRecord, state: TrunkState) -> None:
        """Raise InvalidTransition where the event cannot follow."""
        if self.moved_to:
            kind = type(event).model_fields["kind"].default
            raise InvalidTransition("the run", f"moved to {self.moved_to}", kind, ["moved"])
        if isinstance(event, Forked):
            # Behind a stage that passed, another one may have begun already.
            last = [stage.name for stage in state.stages[-1 - len(list_unfinished(state)) :]]
            if event.stage not in last:
                at = f"not the last stage, {last[-1] if last else 'none'}"
                raise InvalidTransition(event.stage, at, event.kind, [])

    def apply(self, event: AnyStoreEvent, state: ForkedState) -> None:
        """Fold in an event that may follow."""
        match event:
            case Moved():
                self.moved_to = event.to
            case Forked():
                self.id, self.parent = event.id, event.parent
                self.left_at = event.stage, event.step
                while state.stages[-1].name != event.stage:
                    abandon(state)
                _leave_behind(state)
                state.spec = event.spec
                self.absent |= {state.ends[s.name] for s in state.abandoned if s.name in state.ends}

            case LetGo():
                self.absent |= set(event.folders)
            case Mended() | Upgraded():
                pass  # the trunk is what it was

    def is_absent(self, key: str) -> bool:
        """Return whether a folder that the ledger names is left out by intention."""
        folder = key
        while folder and folder not in self.absent:
            folder = folder.rpartition("/")[0]
        return bool(folder)


def _leave_behind(state: ForkedState) -> None:
    """Forget what is the other run's alone: releases, searches, and corpora that are not here.

    What is tokenised is borrowed, and held unless it is trained: a user lets it be trained.
    """
    for name in _LEFT_BEHIND:
        setattr(state, name, type(getattr(state, name))())
    state.resumption = None
    state.lease = state.ingest_lease = ""
    trained = {name for stage in state.stages for name in stage.corpora}
    proxies = {name for stage in state.stages for name in stage.mix.replay.proxies}
    for corpus in list(state.corpora.values()):
        if corpus.name not in trained and not corpus.sequences:
            del state.corpora[corpus.name]
        elif corpus.state == "ready" and corpus.name not in proxies | trained:
            _hold(state, corpus)


def _hold(state: ForkedState, corpus: Corpus) -> None:
    state.move(corpus, "held")
    corpus.reason = "the run that this one was forked from had not trained it"

"""`Ledger.transact`: a decision is made on the last state, again after every lost race."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from perennial.config import RunSpec
from perennial.controller.context import Workspace
from perennial.errors import Busy, InvalidTransition, StaleDecision, Superseded
from perennial.runs.events import Event, Landed, Refused, TookOver
from perennial.runs.ledger import Ledger
from perennial.runs.state import RunState
from perennial.store import Store, open_store
from tests.support.controllers import supersede
from tests.support.event_factory import AT
from tests.support.tiny_run import tiny_run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def _landed(name: str) -> Landed:
    return Landed(at=AT, corpus=name, size_bytes=1)


def _other_writes(store: Store, event: Event) -> None:
    other = Ledger(store)
    other.read()
    other.append(event)


def test_it_decides_again_on_the_new_state_after_a_lost_race(store: Store) -> None:
    seen: list[list[str]] = []

    def decide(state: RunState) -> Landed:
        seen.append(list(state.corpora))
        if len(seen) < 3:  # another process is faster, twice
            _other_writes(store, _landed(f"other-{len(seen)}"))
        return _landed("mine")

    ledger = Ledger(store)
    assert ledger.transact(decide) == _landed("mine")
    assert seen == [[], ["other-1"], ["other-1", "other-2"]]
    assert list(Ledger(store).read().corpora) == ["other-1", "other-2", "mine"]


def test_it_writes_nothing_without_an_event_and_after_an_error(store: Store) -> None:
    def fail(_: RunState) -> None:
        raise Superseded("another")

    ledger = Ledger(store)
    assert ledger.transact(lambda _: None) is None
    with pytest.raises(Superseded):
        ledger.transact(fail)
    with pytest.raises(InvalidTransition):
        ledger.transact(lambda _: Refused(at=AT, corpus="a", reason="too small"))
    assert not store.list("ledger")


def test_racing_threads_lose_no_entry(store: Store) -> None:
    def raise_epochs(who: str) -> None:
        ledger = Ledger(store)
        for _ in range(20):
            ledger.transact(lambda s: TookOver(at=AT, epoch=s.epoch + 1, controller=who))

    threads = [threading.Thread(target=raise_epochs, args=(str(who),)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = Ledger(store)
    assert (ledger.read().epoch, ledger.next) == (80, 80)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Workspace]:
    opened = Workspace(RunSpec.model_validate(tiny_run(tmp_path)), "run.yaml")
    opened.take_charge()
    opened.record(_landed("a"))
    yield opened
    opened.close()


def test_what_happened_is_recorded_behind_what_others_wrote(work: Workspace) -> None:
    _other_writes(work.store, _landed("b"))
    work.record(_landed("c"))
    assert list(work.state.corpora) == ["a", "b", "c"]


def test_what_happened_is_planned_again_where_it_cannot_follow(work: Workspace) -> None:
    _other_writes(work.store, _landed("b"))
    with pytest.raises(StaleDecision, match="b is landed"):
        work.record(_landed("b"))


def test_a_decision_on_the_whole_state_is_planned_again_after_any_event(work: Workspace) -> None:
    _other_writes(work.store, _landed("b"))
    with pytest.raises(StaleDecision):
        work.decide(_landed("c"))
    work.decide(_landed("c"))  # on the state that has been read since
    assert list(work.state.corpora) == ["a", "b", "c"]


def test_a_controller_that_lost_its_charge_writes_nothing_and_a_user_does(work: Workspace) -> None:
    supersede(work)
    for write in (work.record, work.decide):
        with pytest.raises(Superseded):
            write(_landed("c"))
    work.amend(_landed("d"))
    assert list(Ledger(work.store).read().corpora) == ["a", "d"]


def test_one_of_many_processes_opens_the_run_and_takes_charge(tmp_path: Path) -> None:
    spec = RunSpec.model_validate(tiny_run(tmp_path))
    controllers = [Workspace(spec, "run.yaml") for _ in range(4)]
    refused: list[Busy] = []

    def take_charge(work: Workspace) -> None:
        try:
            work.take_charge()
        except Busy as busy:
            refused.append(busy)

    threads = [threading.Thread(target=take_charge, args=(work,)) for work in controllers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Ledger(controllers[0].store).read().epoch == 1
    assert sum(work.in_charge for work in controllers) == 1
    assert len(refused) == 3
    assert "--take-over" in str(refused[0])
    for work in controllers:
        work.close()

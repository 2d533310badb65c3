"""Who holds a run: a heartbeat on the storage's clock, and processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from perennial.audit.repair import repair
from perennial.config import RunSpec
from perennial.controller import leases
from perennial.controller.context import Workspace
from perennial.errors import Busy, StaleDecision, Superseded
from perennial.runs import lease as beats
from perennial.runs.events import Ready
from perennial.runs.lease import Heartbeat, Holder, Lease, read_heartbeat, this_process
from perennial.store import Store, open_store
from tests.support.event_factory import AT, event_of
from tests.support.tiny_run import tiny_run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def _open(store: Store, *, take_over: bool = False) -> Workspace:
    spec = RunSpec.model_validate(tiny_run(Path("/nowhere"), store.url))
    return Workspace(spec, "run.yaml", verb="watch", take_over=take_over)


@pytest.fixture
def work(store: Store) -> Iterator[Workspace]:
    opened = _open(store)
    opened.take_charge()
    yield opened
    opened.close()


def _write_heartbeat(store: Store, key: str, holder: Holder, age_seconds: float = 0.0) -> None:
    """The heartbeat of another process, as old as the test wants it on the storage's clock."""
    lease = Lease(store, "training", holder)
    data = store.read(lease.key)
    lease.give_back()
    store.write(key, data)
    path = Path(store.url, key)
    then = path.stat().st_mtime - age_seconds
    os.utime(path, (then, then))


def test_a_lease_is_there_until_it_is_given_back(store: Store) -> None:
    lease = Lease(store, "training", this_process("run", AT))
    beat = read_heartbeat(store, lease.key)
    assert beat is not None
    assert "`perennial run` on " in str(beat.holder)
    assert not beat.holder.is_gone
    lease.give_back()
    assert read_heartbeat(store, lease.key) is None


def test_the_heartbeat_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Event()
    monkeypatch.setattr(beats, "BEAT_SECONDS", 0.01)
    lease = Lease(store, "training", this_process("run", AT))
    monkeypatch.setattr(Lease, "beat", lambda _: written.set())
    assert written.wait(10)
    lease.give_back()


def test_a_process_that_ended_is_gone_and_one_with_its_number_is_another(store: Store) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mine = this_process("run", AT)
    theirs = replace(mine, process=ended.pid, began=beats._began(ended.pid))
    assert not theirs.is_gone
    ended.communicate(b"\n")
    assert theirs.is_gone
    assert replace(mine, began="1").is_gone, "the number is used again"
    assert not replace(theirs, machine="another").is_gone, "it cannot be seen from here"
    assert not replace(theirs, machine="").is_gone


def test_who_trains_keeps_the_run_and_is_named(work: Workspace, store: Store) -> None:
    other = _open(store)
    with pytest.raises(Busy, match=r"`perennial watch` on .* has held this run since .*take-over"):
        other.take_charge()
    assert not other.in_charge
    assert [info.key for info in store.list("leases/training")] == [work.state.lease]
    work.close()
    other.take_charge()
    assert other.state.epoch == 2
    other.close()
    assert not store.list("leases/training")


def test_who_insists_takes_the_run_and_is_not_overruled_by_the_other(
    work: Workspace, store: Store
) -> None:
    other = _open(store, take_over=True)
    other.take_charge()
    with pytest.raises(Superseded):
        work.refresh()
    work.stand_down()
    with pytest.raises(Busy):
        work.take_charge()
    other.close()


@pytest.mark.parametrize(
    ("holder", "age_seconds"),
    [
        ({"process": 2**22 + 1}, 0.0),  # of this machine, and not there
        ({"machine": "another"}, beats.STALE_SECONDS + 5),
        ({}, beats.STALE_SECONDS + 5),  # alive, and stopped or cut off from the storage
    ],
)
def test_the_lease_of_who_was_killed_is_free(
    store: Store, holder: dict[str, object], age_seconds: float
) -> None:
    killed = _open(store)
    killed.take_charge()
    key, epoch = killed.state.lease, killed.state.epoch
    killed.close()
    dead = replace(this_process("run", AT), **holder)  # type: ignore[arg-type]
    _write_heartbeat(store, key, dead, age_seconds)
    next_one = _open(store)
    next_one.take_charge()
    assert next_one.state.epoch == epoch + 1
    next_one.close()


@pytest.mark.parametrize("lives", [True, False])
def test_a_process_of_another_machine_is_watched_until_it_shows_what_it_is(
    store: Store, lives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _open(store)
    before.take_charge()
    key = before.state.lease
    before.close()
    far = replace(this_process("run", AT), machine="another", host="far")
    _write_heartbeat(store, key, far)
    looks: list[Heartbeat | None] = []

    def look(store: Store, key: str) -> Heartbeat | None:
        beat = read_heartbeat(store, key)
        assert beat is not None
        seconds = 10.0 * len(looks) if lives else 0.0  # it writes again, or never does
        looks.append(replace(beat, modified=beat.modified + timedelta(seconds=seconds)))
        return looks[-1]

    ages = iter([20.0, 40.0, 61.0])
    monkeypatch.setattr(leases, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(beats, "read_heartbeat", look)
    monkeypatch.setattr(Lease, "age_seconds", lambda *_: next(ages))
    monkeypatch.setattr(Lease, "sweep", lambda _: None)
    other = _open(store)
    if lives:
        with pytest.raises(Busy, match="on far"):
            other.take_charge()
    else:
        other.take_charge()
        assert other.in_charge
        assert len(looks) == 3
    other.close()


@pytest.mark.parametrize("lives", [True, False])
def test_a_heartbeat_that_lies_in_the_future_is_watched(
    store: Store, lives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that was set back: the holder is gone once nothing changes for the stale time."""
    before = _open(store)
    before.take_charge()
    key = before.state.lease
    before.close()
    far = replace(this_process("run", AT), machine="another", host="far")
    _write_heartbeat(store, key, far, age_seconds=-3600)
    monkeypatch.setattr(beats, "STALE_SECONDS", 0.2)
    for module, name in ((leases, "_POLL_SECONDS"), (beats, "WATCH_SECONDS")):
        monkeypatch.setattr(module, name, 0.01)
    if lives:
        read, looks = read_heartbeat, iter(range(9))
        monkeypatch.setattr(
            beats,
            "read_heartbeat",
            lambda store, key: (
                (beat := read(store, key))
                and replace(beat, modified=beat.modified + timedelta(seconds=next(looks)))
            ),
        )
    other = _open(store)
    for act in (lambda: repair(store, None, acts=True), other.take_charge):
        if lives:
            with pytest.raises(Busy, match="on far"):
                act()
        else:
            act()
    assert other.in_charge != lives
    other.close()


def test_a_run_that_is_mended_is_written_by_nobody_else(store: Store) -> None:
    work = _open(store)
    work.open_ledger()
    landed = event_of("landed", work.state, "a")
    mending = Lease(store, beats.REPAIRING, this_process("repair", AT))
    ways: list[Callable[[], object]] = [
        work.take_charge,
        lambda: work.ingesting("a").__enter__(),
        lambda: work.amend(landed),
        lambda: work.record(landed),
        lambda: work.decide(landed),
    ]
    for act in ways:
        with pytest.raises(Busy, match=r"`perennial repair` on .* has this run to itself"):
            act()
    assert [info.key for info in store.list("leases")] == ["leases/head.json", mending.key]
    mending.give_back()
    work.take_charge()
    work.amend(landed)
    work.close()


def test_what_killed_processes_left_is_swept_and_the_living_stay(store: Store) -> None:
    _write_heartbeat(store, "leases/training/old.json", this_process("run", AT), 3600)
    _write_heartbeat(store, "leases/training/new.json", this_process("run", AT))
    work = _open(store)
    work.take_charge()
    keys = {info.key for info in store.list("leases/training")}
    assert keys == {"leases/training/new.json", work.state.lease}
    work.close()


def _land(work: Workspace) -> None:
    work.record(event_of("landed", work.state, "a"))


def _ready() -> Ready:
    return Ready(at=AT, corpus="a", sequences=1, tokens=1, digest="d")


def test_a_person_tokenises_beside_a_controller_that_waits(work: Workspace, store: Store) -> None:
    _land(work)
    other = _open(store)
    other.ledger.read()
    with other.ingesting("a"):
        other.record(_ready())
    other.close()
    work.refresh()
    assert work.in_charge
    assert work.state.corpora["a"].state == "ready"


def test_one_process_tokenises_at_a_time_and_the_other_waits_for_its_end(
    work: Workspace, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _land(work)
    other = _open(store)
    said = threading.Event()
    monkeypatch.setattr(other._leases, "_log", lambda _: said.set())
    monkeypatch.setattr(leases, "_POLL_SECONDS", 0.01)

    def wait_for_it() -> None:
        with pytest.raises(StaleDecision), other.ingesting("a"):
            pass

    waiting = threading.Thread(target=wait_for_it)
    with work.ingesting("a"):
        waiting.start()
        assert said.wait(10)
        work.record(_ready())
    waiting.join()
    assert work.state.corpora["a"].event_kinds == ["landed", "ingesting", "ready"]


def test_an_ingest_that_was_killed_is_taken_over_and_its_late_word_refused(
    work: Workspace, store: Store
) -> None:
    _land(work)
    other = _open(store, take_over=True)
    with work.ingesting("a"), other.ingesting("a"):
        with pytest.raises(Superseded, match="took over the ingest"):
            work.record(_ready())
        other.record(_ready())
    assert other.state.corpora["a"].event_kinds == ["landed", "ingesting", "ingesting", "ready"]

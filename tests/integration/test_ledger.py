"""The ledger in a store: what reading costs, who wins a race, and what a snapshot is worth."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest

from perennial.errors import InputError
from perennial.stages import snapshots
from perennial.stages.events import Landed, Refused, TookOver, encode
from perennial.stages.ledger import Ledger, LostRace
from perennial.stages.machine import InvalidTransition, RunState
from perennial.store import ObjectInfo, Store, open_store
from perennial.store.local import LocalStore
from perennial.training.fence import Fence
from tests.walks import AT, walk

RACES = 100


class CountingStore(LocalStore):
    """A folder that counts what is asked of it."""

    asked: ClassVar[Counter[str]] = Counter()

    def read(self, key: str) -> bytes:
        self.asked["read"] += 1
        return super().read(key)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        found = super().list(prefix)
        self.asked["listed names"] += len(found)
        return found


def _fill(store: Store, events: int) -> Ledger:
    """A ledger of corpora that landed and were refused; its last stretch is really appended."""
    told = [_event(number) for number in range(events)]
    old = (events - 1) // snapshots.EVERY_EVENTS * snapshots.EVERY_EVENTS - 1
    folder = Path(store.url) / "ledger"
    folder.mkdir(parents=True)
    for number, event in enumerate(told[:old]):
        (folder / f"{number:012d}.json").write_bytes(encode(event))
    ledger = Ledger(store)
    ledger.read()
    for event in told[old:]:
        ledger.append(event)
    return ledger


def _event(number: int) -> Landed | Refused:
    corpus = f"c{number // 2}"
    if number % 2:
        return Refused(at=AT, corpus=corpus, reason="too small")
    return Landed(at=AT, corpus=corpus, size_bytes=1)


@pytest.mark.parametrize("events", [2_150, pytest.param(100_150, marks=pytest.mark.long)])
def test_reading_a_ledger_costs_its_tail_and_not_its_length(tmp_path: Path, events: int) -> None:
    written = _fill(open_store(tmp_path), events)
    CountingStore.asked.clear()
    ledger = Ledger(CountingStore(str(tmp_path)))
    assert ledger.read() == written.state
    assert ledger.next == events
    tail = events % snapshots.EVERY_EVENTS
    # The snapshot, the event that it follows, the tail, and one request that finds nothing.
    assert CountingStore.asked["read"] == tail + 3
    assert CountingStore.asked["listed names"] <= 3
    CountingStore.asked.clear()
    ledger.read()
    assert CountingStore.asked == {"read": 1}


@pytest.fixture
def filled(tmp_path: Path) -> Store:
    store = open_store(tmp_path)
    _fill(store, 2 * snapshots.EVERY_EVENTS + 10)
    return store


def _newest(store: Store) -> str:
    return [info.key for info in store.list(snapshots.FOLDER)][-1]


def test_deleting_every_snapshot_changes_nothing(filled: Store) -> None:
    before = Ledger(filled).read()
    filled.remove(snapshots.FOLDER)
    told: list[str] = []
    assert Ledger(filled, told.append).read() == before
    assert not told


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda d: d.update(shape="older"), "another version of perennial made it"),
        (lambda d: d.update(last_event_sha256="0"), "the event that it follows is another one"),
        (lambda d: d.update(events=10**6), "it follows no event of this ledger"),
        (lambda d: d.pop("state"), "'state'"),
        (lambda d: d["state"].update(epoch="many"), "of another form"),
    ],
)
def test_a_snapshot_that_disagrees_is_ignored_with_a_line(
    filled: Store,
    spoil: object,
    why: str,
) -> None:
    assert callable(spoil)
    before, key = Ledger(filled).read(), _newest(filled)
    document = json.loads(filled.read(key))
    spoil(document)
    filled.write(key, json.dumps(document).encode())
    told: list[str] = []
    assert Ledger(filled, told.append).read() == before
    assert [line for line in told if key in line and why in line] == told


def test_a_snapshot_holds_the_whole_state(tmp_path: Path) -> None:
    """Stages, mixes, releases and all: what is read back is what was folded."""
    store, state = open_store(tmp_path), RunState()
    walk(state, "a")
    walk(state, "b", "landed", "ingesting", "ready", "started")
    snapshots.write(store, state, 1, b"{}")
    ledger = Ledger(store)
    store.write("ledger/000000000000.json", b"{}")
    assert ledger.read() == state
    assert ledger.state.stages[1].mix == state.stages[1].mix


def test_an_event_of_a_newer_schema_is_a_clear_error(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.create("ledger/000000000000.json", b'{"schema": 7, "kind": "opened"}')
    with pytest.raises(InputError, match=r"its schema is 7.*a later one"):
        Ledger(store).read()


def test_an_event_that_cannot_follow_writes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(open_store(tmp_path))
    with pytest.raises(InvalidTransition):
        ledger.append(Refused(at=AT, corpus="a", reason="r"))
    assert not open_store(tmp_path).list("ledger")


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.long)])
def raced(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url: object = tmp_path if request.param == "local" else request.getfixturevalue("s3_url")
    return open_store(str(url))


@pytest.mark.parametrize("controllers", [2, 3])
def test_i4_of_controllers_that_race_for_a_run_each_round_has_one_winner(
    raced: Store, controllers: int
) -> None:
    """Each reads, each takes charge at once: one of them may, a hundred times."""
    ledgers = [Ledger(raced) for _ in range(controllers)]
    for epoch in range(1, RACES + 1):
        for ledger in ledgers:
            assert ledger.read().epoch == epoch - 1
        line = threading.Barrier(controllers)
        won: list[int] = []

        def race(
            who: int,
            epoch: int = epoch,
            line: threading.Barrier = line,
            won: list[int] = won,
        ) -> None:
            line.wait()
            try:
                ledgers[who].append(TookOver(at=AT, epoch=epoch, controller=str(who)))
                won.append(who)
            except LostRace:
                pass

        threads = [threading.Thread(target=race, args=(who,)) for who in range(controllers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert Ledger(raced).read().controller == str(won[0])


def test_a_fence_falls_with_the_next_claim_and_with_no_other_event(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    ledger = Ledger(store)
    ledger.append(TookOver(at=AT, epoch=1, controller="old"))
    fence = Fence(ledger.next, "took-over")
    release = Fence(ledger.next, "releasing", "r")
    ledger.append(Landed(at=AT, corpus="a", size_bytes=1))
    assert fence.stands(store)
    ledger.append(TookOver(at=AT, epoch=2, controller="new"))
    assert not fence.stands(store)
    assert release.stands(store)
    store.create(f"ledger/{ledger.next:012d}.json", b'{"kind": "releasing", "name": "r"}')
    assert not release.stands(store)


def test_encoded_events_are_readable_by_people() -> None:
    told = json.loads(encode(Landed(at=AT, corpus="a", size_bytes=1)))
    assert told == {"schema": 1, "at": AT, "kind": "landed", "corpus": "a", "size_bytes": 1}

"""The ledger in a store: what reading costs, who wins a race, and what a snapshot is worth."""

from __future__ import annotations

import copy
import json
import multiprocessing
from collections import Counter
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, ClassVar

import pytest

from perennial.errors import InputError, InvalidTransition, LostRace
from perennial.mixture import TrunkUse
from perennial.runs import snapshots
from perennial.runs.event_codec import decode, encode
from perennial.runs.events import Event, Landed, Measured, Refused, Releasing, TookOver
from perennial.runs.ledger import Ledger, digest_of
from perennial.runs.state import RunState
from perennial.runs.trunk.stage_archive import StoredStage
from perennial.store import ObjectInfo, Store, open_store
from perennial.store.local import LocalStore
from perennial.training.checkpoint.ownership import Fence
from tests.support.event_factory import AT, WALK, event_of, releasing
from tests.support.long_run import LongRun, loss_on, stage_events

RACES = 100
FEW = 40


class CountingStore(LocalStore):
    """A folder that counts what is asked of it."""

    asked: ClassVar[Counter[str]] = Counter()

    def read(self, key: str) -> bytes:
        self.asked["read"] += 1
        return super().read(key)

    def list(self, prefix: str = "", after: str = "") -> list[ObjectInfo]:
        found = super().list(prefix, after)
        self.asked["listed names"] += len(found)
        return found


def _fill(store: Store, events: int) -> Ledger:
    """A ledger of corpora that landed and were refused; its last stretch is really appended."""
    told = [_event(number) for number in range(events)]
    old = (events - 1) // snapshots.EVERY_EVENTS * snapshots.EVERY_EVENTS - 1
    folder = Path(store.url) / "ledger"
    folder.mkdir(parents=True)
    before = ""
    for number, event in enumerate(told[:old]):
        data = encode(event, before)
        (folder / f"{number:012d}.json").write_bytes(data)
        before = digest_of(data)
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
    # The snapshot, the event that it follows, the tail, and the head.
    assert CountingStore.asked["read"] == tail + 3
    # The snapshots, twice: by themselves, and behind the entries of the tail.
    assert CountingStore.asked["listed names"] <= tail + 6
    CountingStore.asked.clear()
    ledger.read()
    assert CountingStore.asked["read"] == 0
    assert CountingStore.asked["listed names"] <= 3


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
        (lambda d: d.update(format=99), "another version of perennial made it"),
        (lambda d: d.update(format=2, shape="older"), "another version of perennial made it"),
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


@pytest.mark.parametrize(
    "earlier", [{"format": 2, "shape": snapshots._SCHEMA_OF_2}, {"format": 3}], ids=["2", "3"]
)
def test_a_snapshot_of_an_earlier_format_is_read(filled: Store, earlier: dict[str, Any]) -> None:
    before, key = Ledger(filled).read(), _newest(filled)
    document = json.loads(filled.read(key)) | earlier
    for corpus in document["state"]["corpora"].values():
        del corpus["rate"], corpus["search"]  # which these did not have
    filled.write(key, json.dumps(document).encode())
    _check_read_from_snapshot(filled, before)


def test_a_later_version_reads_a_snapshot_that_it_knows_to_migrate(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that names a field otherwise does not read the past again."""
    before, key = Ledger(filled).read(), _newest(filled)
    document = json.loads(filled.read(key))
    state = {"old_epoch" if name == "epoch" else name: v for name, v in document["state"].items()}
    filled.write(key, json.dumps(document | {"format": 4, "state": state}).encode())

    def migrate(document: dict[str, Any]) -> dict[str, Any]:
        state = document["state"]
        return document | {"format": 5, "state": state | {"epoch": state.pop("old_epoch")}}

    monkeypatch.setattr(snapshots, "FORMAT", 5)
    monkeypatch.setitem(snapshots._MIGRATIONS, 4, migrate)
    _check_read_from_snapshot(filled, before)


def _check_read_from_snapshot(store: Store, before: RunState) -> None:
    CountingStore.asked.clear()
    told: list[str] = []
    counting = CountingStore(store.url)
    assert Ledger(counting, told.append).read() == before
    assert not told
    assert CountingStore.asked["read"] < 20


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots after few events."""
    monkeypatch.setattr(snapshots, "EVERY_EVENTS", FEW)


@pytest.mark.usefixtures("soon")
def test_a_snapshot_holds_the_whole_state(tmp_path: Path) -> None:
    """Stages, mixes, measurements and all: what is read back is what was folded."""
    run = LongRun(tmp_path)
    run.grow(FEW // 8 + 3)
    past = run.ledger.state.stages[-5].name
    run.ledger.append(Measured(at=AT, stage=past, losses={"z": loss_on("z", 1.0)}))
    whole = run.ledger.state
    ledger = Ledger(run.store)
    state = ledger.read()
    assert isinstance(state.stages[0], StoredStage)
    assert state.use.firsts == whole.use.firsts
    assert state == whole
    assert "z" in state.losses[past]
    for stage in whole.stages:
        assert state.seen(stage, stage.last_step) == whole.seen(stage, stage.last_step)
    # And it goes on from there as from the whole ledger.
    for event in stage_events(run.spec, state):
        ledger.append(event)
    assert copy.deepcopy(state) == run.ledger.read() == state
    assert state.use == TrunkUse.of(state.history)


@pytest.mark.usefixtures("soon")
def test_a_snapshot_holds_each_stage_once_whatever_was_measured(tmp_path: Path) -> None:
    """Its size is a stage's, and no entry of a stage is read until it is asked for."""
    sizes = []
    for cells in (0, None):
        run = LongRun(tmp_path / str(cells), cells).grow(FEW // 8 + 3)
        sizes.append(run.store.info(_newest(run.store)).size_bytes)
        CountingStore.asked.clear()
        state = Ledger(CountingStore(run.store.url)).read()
        tail = (2 + 8 * len(state.stages)) % FEW
        assert CountingStore.asked["read"] == tail + 3
        assert state.losses[state.stages[3].name]
        assert CountingStore.asked["read"] == tail + 4
    assert sizes[1] < 1.05 * sizes[0]


@pytest.mark.usefixtures("soon")
def test_an_entry_that_is_gone_or_another_one_since_is_told_when_it_is_read(
    tmp_path: Path,
) -> None:
    run = LongRun(tmp_path, 0).grow(FEW // 8 + 1)
    state = Ledger(run.store).read()
    key = run.ledger.key(5)
    run.store.write(key, run.store.read(run.ledger.key(4)))
    with pytest.raises(InputError, match=f"{key}.*'ready'.*replaced"):
        assert state.stages[0].mix
    run.store.remove(key)
    with pytest.raises(InputError, match=f"{key}.*is missing"):
        assert state.stages[0].mix


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


@pytest.mark.parametrize(
    ("controllers", "prize"),
    [
        (3, "took-over"),
        (2, "releasing"),
        pytest.param(2, "took-over", marks=pytest.mark.long),
        pytest.param(3, "releasing", marks=pytest.mark.long),
    ],
)
def test_i4_of_controllers_that_race_for_a_claim_each_round_has_one_winner(
    raced: Store, controllers: int, prize: str
) -> None:
    """Processes that read and claim the run, or a release, at the same moment, a hundred times."""
    ledger = Ledger(raced)
    for kind in WALK:
        ledger.append(event_of(kind, ledger.state, "a"))
    spawn = multiprocessing.get_context("spawn")  # with nothing of this process's
    line, won = spawn.Barrier(controllers, timeout=60), spawn.Queue()
    racers = [
        spawn.Process(target=_race, args=(raced.url, prize, str(who), line, won))
        for who in range(controllers)
    ]
    for racer in racers:
        racer.start()
    claims: dict[str, list[int]] = dict(won.get(timeout=120) for _ in racers)
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    assert sorted(claim for mine in claims.values() for claim in mine) == [*range(1, RACES + 1)]
    assert sum(1 for mine in claims.values() if mine) > 1, "one that always wins raced nobody"
    told = [decode(raced.read(f"ledger/{len(WALK) + n:012d}.json")).event for n in range(RACES)]
    assert not raced.exists(f"ledger/{len(WALK) + RACES:012d}.json")
    for claim, event in enumerate(told, 1):
        assert isinstance(event, TookOver | Releasing)
        assert claim in claims[event.controller if isinstance(event, TookOver) else event.source]


def _race(url: str, prize: str, who: str, line: Barrier, won: Queue[tuple[str, list[int]]]) -> None:
    """One controller; which claims it won."""
    ledger, mine = Ledger(open_store(url)), []
    for claim in range(1, RACES + 1):
        state = ledger.read()
        event: Event = TookOver(at=AT, epoch=claim, controller=who)
        if prize == "releasing":
            event = releasing(state, "r").model_copy(update={"source": who})
            assert event.claim == claim
        line.wait()
        try:
            ledger.append(event)
            mine.append(claim)
        except LostRace:
            pass
        line.wait()
    won.put((who, mine))


def test_transactions_of_racing_processes_each_rest_on_the_last_state(raced: Store) -> None:
    """Every epoch is decided on the epoch before it, by whichever process; none is lost."""
    controllers, rounds = 3, 30
    spawn = multiprocessing.get_context("spawn")
    line = spawn.Barrier(controllers, timeout=60)
    racers = [
        spawn.Process(target=_transact, args=(raced.url, str(who), rounds, line))
        for who in range(controllers)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    keys = [f"ledger/{n:012d}.json" for n in range(controllers * rounds)]
    entries = [decode(raced.read(key)).event for key in keys]
    assert not raced.exists(f"ledger/{controllers * rounds:012d}.json")
    assert [e.epoch for e in entries if isinstance(e, TookOver)] == [*range(1, len(entries) + 1)]
    writers = Counter(event.controller for event in entries if isinstance(event, TookOver))
    assert writers == {str(who): rounds for who in range(controllers)}


def _transact(url: str, who: str, rounds: int, line: Barrier) -> None:
    ledger = Ledger(open_store(url))
    line.wait()
    for _ in range(rounds):
        ledger.transact(
            lambda state: TookOver(at=AT, epoch=state.epoch + 1, controller=who),
        )


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
    told = json.loads(encode(Landed(at=AT, corpus="a", size_bytes=1), "d1"))
    event = {"at": AT, "kind": "landed", "corpus": "a", "size_bytes": 1}
    assert told == {"schema": 3, "before": "d1"} | event

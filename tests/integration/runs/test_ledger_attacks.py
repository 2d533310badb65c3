"""A ledger whose objects were deleted, repeated, cut, replaced: refused by name, and mended."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from perennial.audit.repair import repair
from perennial.config import RunSpec
from perennial.controller.context import Workspace
from perennial.errors import Busy, InputError
from perennial.runs.lease import Lease, this_process
from perennial.runs.ledger import HEAD, Ledger, read_head
from perennial.store import Store, open_store
from tests.support.event_factory import AT, event_of
from tests.support.small_ledger import ENTRIES, copy_of, key, objects, write_ledger
from tests.support.tiny_run import tiny_run

Attack = Callable[[Store], None]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.long)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = tmp_path / "store" if request.param == "local" else request.getfixturevalue("s3_url")
    return write_ledger(open_store(url))


def test_on_a_server_too_an_absent_entry_is_missing(s3_url: str) -> None:
    store = write_ledger(open_store(s3_url))
    store.remove(key(4))
    refused_at(store, 4, "is missing, and .* is there")


def move(store: Store, source: int, target: int) -> None:
    store.write(key(target), store.read(key(source)))


def from_another_run(store: Store, number: int, tmp_path: Path) -> None:
    other = write_ledger(open_store(tmp_path / "other"), owner="d")
    store.write(key(number), other.read(key(number)))


def refused_at(store: Store, number: int, why: str) -> None:
    """Every reader names the entry, and nothing is written, not even by who would train."""
    before = objects(store)
    with pytest.raises(InputError, match=why) as refusal:
        Ledger(store).read()
    assert refusal.value.where == f"{store.url}/{key(number)}"
    assert refusal.value.code == "ledger-broken"
    assert "perennial repair" in refusal.value.remedy
    work = Workspace(RunSpec.model_validate(tiny_run(Path("/nowhere"), store.url)), "run.yaml")
    for act in (
        work.take_charge,
        work.check_run,
        lambda: work.amend(event_of("held", work.state, "a")),
    ):
        with pytest.raises(InputError, match=why):
            act()
    work.close()
    assert objects(store) == before


@pytest.mark.parametrize("number", range(ENTRIES))
def test_an_absent_entry_is_not_one_that_was_not_written_yet(store: Store, number: int) -> None:
    lost = store.read(key(number))
    store.remove(key(number))
    last = number == ENTRIES - 1
    refused_at(
        store, number, "is missing, and .* was written" if last else "is missing, and .* is there"
    )
    store.write(key(number), lost)
    assert list(Ledger(store).read().corpora) == ["a"]


def test_a_reader_that_was_refused_reads_what_was_put_back(store: Store) -> None:
    ledger, lost = Ledger(store), store.read(key(4))
    store.write(key(4), store.read(key(5)))
    with pytest.raises(InputError):
        ledger.read()
    store.write(key(4), lost)
    assert ledger.read() == Ledger(store).read()
    assert ledger.next == ENTRIES


ATTACKS: dict[str, tuple[Callable[[Store, Path], None], int, str]] = {
    "the last entry once more": (
        lambda s, _: move(s, ENTRIES - 1, ENTRIES),
        ENTRIES,
        "is repeated",
    ),
    "an earlier entry once more": (lambda s, _: move(s, 3, ENTRIES), ENTRIES, "is repeated"),
    "one entry in another's place": (lambda s, _: move(s, 5, 4), 4, "another ledger"),
    "an entry of another run": (lambda s, p: from_another_run(s, 6, p), 6, "another ledger"),
    "an entry of another run at the end": (
        lambda s, p: from_another_run(s, ENTRIES - 1, p),
        ENTRIES - 1,
        "another ledger",
    ),
    "half an entry": (lambda s, _: s.write(key(4), s.read(key(4))[:40]), 4, "cannot follow"),
    "an empty entry": (lambda s, _: s.write(key(4), b""), 4, "cannot follow"),
    "what is no object": (lambda s, _: s.write(key(4), b"[]"), 4, "is no JSON object"),
    "one changed letter": (
        lambda s, _: s.write(key(1), s.read(key(1)).replace(b'"c"', b'"d"')),
        2,
        "was replaced",
    ),
    "a changed last entry": (
        lambda s, _: s.write(key(9), s.read(key(9)).replace(b"2026", b"2027")),
        9,
        "was replaced",
    ),
    "an entry of an older version behind newer ones": (
        lambda s, _: s.write(key(10), b'{"schema": 2, "kind": "held", "at": "", "corpus": "a"}'),
        10,
        "carries no digest",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_the_ledgers_own_is_refused_by_name(
    store: Store, attack: str, tmp_path: Path
) -> None:
    spoil, number, why = ATTACKS[attack]
    spoil(store, tmp_path)
    refused_at(store, number, why)


def test_a_lost_head_takes_nothing_away(store: Store) -> None:
    """It is written again with the next event; what is gone is the proof of the last one."""
    store.remove(HEAD)
    ledger = Ledger(store)
    ledger.read()
    ledger.append(event_of("retired", ledger.state, "a"))
    assert read_head(store) == ledger.head


def test_a_whole_ledger_that_is_gone_is_no_new_run(store: Store) -> None:
    for target in ("ledger", HEAD):
        store.remove(target)
    store.write("checkpoints/00-a/00000010/manifest.json", b"{}")
    refused_at(store, 0, "is missing, and there are checkpoints")


@pytest.mark.parametrize("number", [0, 4, ENTRIES - 1])
def test_repair_takes_a_lost_or_altered_entry_from_a_copy(
    store: Store, tmp_path: Path, number: int
) -> None:
    whole = Ledger(store).read()
    copy = copy_of(store, tmp_path / "copy")
    for is_gone in (True, False):
        if is_gone:
            store.remove(key(number))
        else:
            store.write(key(number), b"{}")
        assert repair(store, copy, acts=False).restored == [key(number)]
        assert repair(store, copy).restored == [key(number)]
        assert Ledger(store).read() == whole
    (kept,) = [info.key for info in store.list("aside")]
    assert kept.startswith(f"aside/{key(number)}-")
    assert store.read(kept) == b"{}", "what was replaced is kept"


@pytest.mark.parametrize("attack", ["the last entry once more", "an earlier entry once more"])
def test_repair_sets_aside_what_follows_no_entry(store: Store, attack: str, tmp_path: Path) -> None:
    whole = Ledger(store).read()
    ATTACKS[attack][0](store, tmp_path)
    done = repair(store, None)
    assert done.set_aside == [key(ENTRIES)]
    assert Ledger(store).read() == whole


def test_repair_sets_aside_nothing_that_others_rest_on(store: Store) -> None:
    store.write(key(4), b"{}")
    before = objects(store)
    done = repair(store, None)
    assert (done.restored, done.set_aside) == ([], [])
    assert done.findings[0].key == key(4)
    assert objects(store) == before


def test_repair_does_not_run_beside_a_process_that_writes(store: Store) -> None:
    other = Lease(store, "training", this_process("run", AT))
    store.remove(key(4))
    with pytest.raises(Busy, match="`perennial run` on "):
        repair(store, None)
    other.give_back()
    assert repair(store, None).findings


def test_a_store_written_before_digests_goes_on_with_them(tmp_path: Path) -> None:
    """The first new entry names the last old one; the old ones are read by their numbers."""
    from tests.support.old_store import unpack_old_store

    old = unpack_old_store(tmp_path)
    ledger = Ledger(old.store)
    state = ledger.read()
    count = ledger.next
    ledger.append(event_of("retired", state, "help"))
    assert Ledger(old.store).read() == ledger.state
    shutil.copy(old.folder / key(count - 2), old.folder / key(count - 1))
    with pytest.raises(InputError, match=key(count - 1)):
        Ledger(old.store).read()

"""`repair` takes, keeps and names nothing that the head, a checkpoint or a later entry denies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perennial.audit.repair import repair
from perennial.audit.verify import verify
from perennial.cli.app import app
from perennial.errors import InputError
from perennial.runs.ledger import HEAD, Head, Ledger, digest_of, read_head
from perennial.store import Store, open_store
from tests.support.event_factory import event_of
from tests.support.small_ledger import (
    ENTRIES,
    copy_of,
    key,
    objects,
    write_checkpoint,
    write_ledger,
)

LAST = ENTRIES - 1


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_ledger(open_store(tmp_path / "store"))


def write_head(store: Store, events: object, sha256: str) -> None:
    store.write(HEAD, json.dumps({"events": events, "sha256": sha256}).encode())


def alter(store: Store, number: int) -> None:
    """Change an entry so that it can still be read and follows the one before it."""
    store.write(key(number), store.read(key(number)).replace(b"2026", b"2027"))


def cut(store: Store, number: int) -> None:
    store.write(key(number), store.read(key(number))[:40])


def lose_from(store: Store, number: int) -> None:
    """Lose the end of the ledger, and the head with it."""
    for lost in range(number, ENTRIES):
        store.remove(key(lost))
    store.remove(HEAD)


def stays_lost(store: Store, copy: Store | None, number: int) -> None:
    before = objects(store)
    done = repair(store, copy)
    assert (done.restored, done.set_aside, done.corrected) == ([], [], [])
    assert key(number) in [finding.key for finding in done.findings]
    assert objects(store) == before
    with pytest.raises(InputError):
        Ledger(store).read()


@pytest.mark.parametrize("spoil", [alter, cut])
def test_a_last_entry_that_the_head_denies_stays_lost(
    store: Store, spoil: Callable[[Store, int], None]
) -> None:
    spoil(store, LAST)
    stays_lost(store, None, LAST)


def test_a_torn_last_entry_that_nothing_names_is_set_aside(store: Store) -> None:
    whole = Ledger(store).read()
    store.write(key(ENTRIES), b'{"schema": 3, "bef')
    assert repair(store, None).set_aside == [key(ENTRIES)]
    assert Ledger(store).read() == whole


def test_nothing_is_taken_from_a_copy_that_went_another_way(store: Store, tmp_path: Path) -> None:
    copy = copy_of(store, tmp_path / "copy")
    alter(copy, LAST)
    store.remove(key(LAST))
    stays_lost(store, copy, LAST)


@pytest.mark.parametrize("number", [0, 4])
def test_a_copy_of_another_run_replaces_nothing(store: Store, tmp_path: Path, number: int) -> None:
    other = write_ledger(open_store(tmp_path / "other"), owner="d")
    store.remove(key(number))
    before = objects(store)
    with pytest.raises(InputError) as refusal:
        repair(store, other)
    assert refusal.value.code == "repair-from-another-run"
    assert objects(store) == before


@pytest.mark.parametrize("copy", ["nowhere", "file", "store"])
def test_what_is_no_copy_is_refused(store: Store, tmp_path: Path, copy: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as refusal:
        repair(store, open_store(tmp_path / copy))
    code = "repair-from-itself" if copy == "store" else "repair-from-no-run"
    assert (refusal.value.where, refusal.value.code) == ("--from", code)


@pytest.mark.parametrize("head", ["stale", "wrong", "absent"])
def test_valid_entries_behind_an_altered_one_stay(store: Store, head: str) -> None:
    heads = {
        "stale": lambda: write_head(store, 4, digest(store, 3)),
        "wrong": lambda: write_head(store, 4, "0" * 64),
        "absent": lambda: store.remove(HEAD),
    }
    heads[head]()
    alter(store, 6)
    stays_lost(store, None, 7)


def digest(store: Store, number: int) -> str:
    return digest_of(store.read(key(number)))


@pytest.mark.parametrize(
    ("events", "sha256"), [(25, "d" * 64), (25, "deadbeef"), (-5, "x"), (10**15, "d" * 64)]
)
def test_a_head_that_no_ledger_has_is_corrected_where_a_whole_copy_ends_as_the_ledger_does(
    store: Store, tmp_path: Path, events: int, sha256: str
) -> None:
    whole, copy = read_head(store), copy_of(store, tmp_path / "copy")
    write_head(store, events, sha256)
    with pytest.raises(InputError) as refusal:
        Ledger(store).read()
    assert refusal.value.code == "ledger-broken"
    done = repair(store, copy)
    assert f"named {events} entries" in done.corrected[0]
    assert HEAD not in [finding.key for finding in done.findings]
    assert read_head(store) == whole


def test_a_head_ahead_stays_where_the_ledger_alone_denies_it(store: Store) -> None:
    write_head(store, 25, "d" * 64)
    stays_lost(store, None, ENTRIES)


def test_a_wrong_head_is_found_and_corrected_where_the_next_entry_denies_it(store: Store) -> None:
    whole = read_head(store)
    write_head(store, 4, "d" * 64)
    assert key(3) in [finding.key for finding in verify(store).findings]
    with pytest.raises(InputError, match=r"is not the entry that leases/head\.json names"):
        Ledger(store).read()
    assert repair(store, None).corrected
    assert read_head(store) == whole


def test_a_head_that_is_behind_is_right(store: Store) -> None:
    write_head(store, 4, digest(store, 3))
    assert Ledger(store).read().corpora
    assert repair(store, None).corrected == []
    assert read_head(store).events == ENTRIES


@pytest.mark.parametrize("has_copy", [True, False])
@pytest.mark.parametrize("stray", ["a copy of an entry", "what is none"])
def test_a_stray_entry_far_behind_the_end_is_set_aside(
    store: Store, tmp_path: Path, has_copy: bool, stray: str
) -> None:
    whole, copy = Ledger(store).read(), copy_of(store, tmp_path / "copy")
    data = store.read(key(5)) if stray == "a copy of an entry" else b"{}"
    store.write(key(99_999), data)
    assert repair(store, copy if has_copy else None).set_aside == [key(99_999)]
    assert Ledger(store).read() == whole


def test_two_lost_entries_are_restored_by_the_chain_of_the_copy(
    store: Store, tmp_path: Path
) -> None:
    whole, copy = Ledger(store).read(), copy_of(store, tmp_path / "copy")
    store.remove(key(3))
    store.write(key(4), b"{}")
    assert repair(store, copy).restored == [key(3), key(4)]
    assert Ledger(store).read() == whole


def test_a_lost_end_is_shown_by_a_checkpoint_and_restored_to_the_copys(
    store: Store, tmp_path: Path
) -> None:
    whole = Ledger(store).read()
    write_checkpoint(store, "checkpoints/00-a", 10, events=6)
    copy = copy_of(store, tmp_path / "copy")
    lose_from(store, 4)
    stays_lost(store, None, 4)
    with pytest.raises(InputError, match="checkpoints/00-a/00000010 was trained"):
        Ledger(store).read()
    assert repair(store, copy).restored == [key(number) for number in range(4, ENTRIES)]
    assert Ledger(store).read() == whole
    assert read_head(store) == read_head(copy)


def test_the_newest_stages_checkpoint_denies_an_entry_of_its_number(store: Store) -> None:
    write_checkpoint(store, "checkpoints/00-a", 10, events=6)
    assert Ledger(store).read().corpora
    lose_from(store, 6)
    alter(store, 5)
    with pytest.raises(InputError, match="is not the entry that checkpoints/00-a"):
        Ledger(store).read()
    stays_lost(store, None, 5)


def test_a_stage_that_began_while_the_ledger_was_read_is_none_that_is_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(store, "checkpoints/00-a", 10, events=6)
    later = {key(number): store.read(key(number)) for number in range(5, ENTRIES)}
    lose_from(store, 5)
    ledger = Ledger(store)

    def read_while_another_writes(self: Ledger, stored: Head) -> None:
        for name, data in later.items():
            store.write(name, data)

    monkeypatch.setattr(Ledger, "_check_head", read_while_another_writes)
    assert ledger.read().ends
    assert ledger.next == ENTRIES


def test_what_takes_the_next_key_and_is_no_object_ends_the_writing(store: Store) -> None:
    Path(store.url, key(ENTRIES)).mkdir()
    with pytest.raises(InputError, match="is taken, and is no object") as refusal:
        Ledger(store).transact(lambda state: event_of("retired", state, "a"))
    assert refusal.value.where == f"{store.url}/{key(ENTRIES)}"


def test_a_broken_store_is_verified_and_mended_by_its_place_alone(
    store: Store, tmp_path: Path
) -> None:
    """There may be no run file any more; what else reads the store names the fault."""
    copy = copy_of(store, tmp_path / "copy")
    store.remove(key(2))
    lost = CliRunner().invoke(app, ["verify", store.url])
    assert (lost.exit_code, lost.output.startswith(f"{key(2)}: is missing")) == (1, True)
    refused = CliRunner().invoke(app, ["status", store.url])
    assert (refused.exit_code, f"{key(2)}: is missing" in refused.output) == (2, True)
    mended = CliRunner().invoke(app, ["repair", store.url, "--from", copy.url])
    assert f"restored      {key(2)}" in mended.output
    assert store.read(key(2)) == copy.read(key(2))
    assert Ledger(store).read().stages

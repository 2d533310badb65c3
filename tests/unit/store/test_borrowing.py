"""A store that borrows: places relative to it, and which store an object is read from."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from perennial.controller.storage.loans import own_folder
from perennial.errors import InputError
from perennial.store import LocalStore, open_run_store, open_store
from perennial.store.borrowing import (
    BORROWED,
    BorrowingStore,
    Loan,
    place_at,
    place_from,
    read_borrowed,
    read_pins,
    write_borrowed,
    write_pin,
)


@pytest.mark.parametrize(
    ("here", "there", "place"),
    [
        ("/runs/a", "/runs/b", "../b"),
        ("/runs/a", "/data/x/b", "../../data/x/b"),
        ("s3://bucket/runs/a", "s3://bucket/runs/b", "../b"),
        ("s3://bucket", "s3://bucket/b", "b"),
        ("s3://bucket/a", "s3://other/b", "s3://other/b"),
        ("/runs/a", "s3://other/b", "s3://other/b"),
    ],
)
def test_a_place_is_relative_where_it_can_be(here: str, there: str, place: str) -> None:
    store, other = open_store(here), open_store(there)
    assert place_from(store, other) == place
    assert open_store(place_at(store, place)).url == other.url


def _borrow(folder: Path) -> BorrowingStore:
    lender, own = open_store(folder / "lender"), open_store(folder / "own")
    for key in ("corpora/a/shard", "corpora/b/shard", "checkpoints/s/1/w", "checkpoints/s/2/w"):
        lender.write(key, b"lent")
    own.write("corpora/c/shard", b"own")
    loan = Loan("me", "../lender", ("corpora/a", "checkpoints/s/2"))
    write_pin(lender, loan)
    write_borrowed(own, [loan])
    store = open_run_store(own.url)
    assert isinstance(store, BorrowingStore)
    return store


def test_objects_are_where_they_are_and_no_other_is_seen(tmp_path: Path) -> None:
    store = pickle.loads(pickle.dumps(_borrow(tmp_path)))
    assert store.is_local
    assert [info.key for info in store.list()] == [
        BORROWED, "checkpoints/s/2/w", "corpora/a/shard", "corpora/c/shard",
    ]  # fmt: skip
    assert [info.key for info in store.list("checkpoints/s")] == ["checkpoints/s/2/w"]
    assert [info.key for info in store.list("corpora/a")] == ["corpora/a/shard"]
    assert [info.key for info in store.list("corpora", "corpora/b")] == ["corpora/c/shard"]
    assert (store.read("corpora/a/shard"), store.read("corpora/c/shard")) == (b"lent", b"own")
    assert not store.exists("corpora/b/shard")
    corpora = store.sub("corpora")
    assert [info.key for info in corpora.list()] == ["a/shard", "c/shard"]
    assert corpora.sub("a").read("shard") == store.sub("corpora/a").read("shard") == b"lent"


def test_what_is_borrowed_is_never_changed(tmp_path: Path) -> None:
    store = _borrow(tmp_path)
    for change in (store.write, store.create):
        with pytest.raises(PermissionError):
            change("corpora/a/shard", b"")
    with pytest.raises(PermissionError):
        store.sub("corpora/a").write("shard", b"")
    store.remove("corpora")
    assert [info.key for info in store.list("corpora")] == ["corpora/a/shard"]
    store.write("checkpoints/s/3/w", b"mine")
    assert [info.key for info in store.list("checkpoints")] == [
        "checkpoints/s/2/w", "checkpoints/s/3/w",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"lenders": [1]}', '{"lenders": [{"id": "a"}]}'])
def test_a_loan_that_cannot_be_read_is_an_error_of_its_file(tmp_path: Path, text: str) -> None:
    store = open_store(tmp_path)
    store.write(BORROWED, text.encode())
    store.write("pins/a.json", text.encode())
    for read in (lambda: open_run_store(tmp_path), lambda: read_pins(store)):
        with pytest.raises(InputError) as broken:
            read()
        assert broken.value.code == "loan-unreadable"


def test_a_lender_without_a_pin_is_another_store(tmp_path: Path) -> None:
    store = _borrow(tmp_path)
    open_store(tmp_path / "lender").remove("pins")
    with pytest.raises(InputError) as gone:
        open_run_store(store.url)
    assert gone.value.code == "lender-missing"


def test_a_store_that_does_not_answer_is_not_taken_for_one_that_borrows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real = _borrow(tmp_path), LocalStore.read

    def read(self: LocalStore, key: str) -> bytes:
        if key == BORROWED:
            raise ConnectionError("try again")
        return real(self, key)

    with monkeypatch.context() as failing:
        failing.setattr(LocalStore, "read", read)
        unread = pickle.loads(pickle.dumps(open_run_store(store.url)))
        below = unread.sub("corpora").sub("a")
        uses: list[Callable[[], object]] = [
            unread.list,
            lambda: unread.write("corpora/a/shard", b""),
            lambda: unread.exists("corpora/b/shard"),
            lambda: unread.remove("corpora"),
            lambda: below.read("shard"),
        ]
        for use in uses:
            with pytest.raises(ConnectionError):
                use()
        with pytest.raises(ConnectionError):
            own_folder(store, "corpora/a")
    assert unread.list() == store.list()
    assert below.read("shard") == b"lent"
    assert unread.sub("corpora").list() == store.sub("corpora").list()
    with pytest.raises(PermissionError):
        unread.write("corpora/a/shard", b"")
    assert [loan.folders for loan in read_borrowed(store.own)] == [
        ("corpora/a", "checkpoints/s/2")
    ]  # fmt: skip


def test_a_store_that_cannot_be_used_says_so_before_what_it_borrows(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError) as refused:
        open_run_store(tmp_path / "file").check()
    assert refused.value.code == "store-not-writable"

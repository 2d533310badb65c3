"""Lines about long uploads and downloads: none for short ones, and every byte is counted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from perennial.store import open_store, shown_transfer, transfer_progress
from perennial.store.checked import copy_checked
from perennial.store.transfer_progress import TransferProgress


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_now_and_then_says_how_far_it_is_and_what_is_left() -> None:
    shown: list[str] = []
    clock = Clock()
    transfer = TransferProgress("landing french", 4_000_000_000, shown.append, clock)
    clock.now += 9
    transfer.add(500_000_000)
    assert shown == [], "what takes seconds has no line"
    clock.now += 1
    transfer.add(500_000_000)
    clock.now += 5
    transfer.add(1)
    assert shown == ["landing french: 1.0 GB of 4.0 GB, 100.0 MB/s, 0:30 left"]
    clock.now += 5
    transfer.add(999_999_999)
    assert shown[1:] == ["landing french: 2.0 GB of 4.0 GB, 100.0 MB/s, 0:20 left"]


def test_more_than_was_expected_leaves_nothing() -> None:
    shown: list[str] = []
    clock = Clock()
    transfer = TransferProgress("x", 10, shown.append, clock)
    clock.now += 60
    transfer.add(1200)
    assert shown == ["x: 1.2 kB of 10 bytes, 20 bytes/s, 0:00 left"]


def test_uploads_downloads_and_copies_of_a_folder_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_progress, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(transfer_progress, "_EVERY_SECONDS", 0.0)
    store, other = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    file = tmp_path / "file"
    file.write_bytes(b"x" * 3_000_000)
    shown: list[str] = []
    with shown_transfer("moving", 9_000_000, shown.append):
        store.upload(file, "f")
        store.download("f", tmp_path / "back")
        copy_checked(store, "f", other, "f", hashlib.sha256(file.read_bytes()).hexdigest())
    assert shown[-1].startswith("moving: 9.0 MB of 9.0 MB, ")
    before = len(shown)
    store.upload(file, "again")
    assert len(shown) == before, "outside of the block nothing is shown"

"""Every reader of a committed checkpoint compares what it reads with the manifest (I10)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from perennial.controller.reuse_trial import _copy
from perennial.errors import Altered, Damaged
from perennial.evaluation.evaluate import fetch
from perennial.mixture import ReplayRule, stage_mix
from perennial.runs.entities import Stage
from perennial.schedules import ConstantSchedule, to_dict
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.model.export import export
from tests.support.committed import KEY, commit_folder

FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 64,
    "optimizer-00-of-01.safetensors": bytes(999),
    "metrics.jsonl": b'{"step": 4, "loss": 5.5}\n',
}


MIX = stage_mix([], {"en": 8}, 4, 2, ReplayRule())
SCHEDULE = ConstantSchedule(1e-3)


@pytest.fixture
def store(store_url: str, tmp_path: Path) -> Store:
    """A store with a committed checkpoint."""
    store, folder = open_store(store_url), tmp_path / "made"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    commit_folder(store, folder, mix=MIX.to_dict(), schedule=to_dict(SCHEDULE))
    return store


def _evaluate(store: Store, folder: Path) -> None:
    fetch(store, KEY, folder)


def _train(store: Store, folder: Path) -> None:
    manifest = checkpoints.read_manifest(store, KEY)
    checkpoints.download(store, KEY, manifest, manifest.files, folder)


def _release(store: Store, folder: Path) -> None:
    try:
        export(store, KEY, "releases/r", {}, "A card.")
    finally:
        assert not store.exists("releases/r/manifest.json")


def _report(store: Store, folder: Path) -> None:
    checkpoints.kept_rows(store, "checkpoints/00-en")


def _adopt(store: Store, folder: Path) -> None:
    stage = Stage("01-en", 0, None, MIX, to_dict(SCHEDULE), "", 0, "reset")
    try:
        _copy(store, KEY, stage)
    finally:
        assert not store.exists("checkpoints/01-en/00000004/manifest.json")


READERS: dict[str, tuple[Callable[[Store, Path], None], tuple[str, ...]]] = {
    "evaluation": (_evaluate, ("config.json", "model.safetensors", "metrics.jsonl")),
    "training": (_train, tuple(FILES)),
    "release": (_release, ("config.json", "model.safetensors")),
    "report": (_report, ("metrics.jsonl",)),
    "a stage that goes on from a trial": (_adopt, tuple(FILES)),
}


@pytest.mark.parametrize("reader", READERS)
def test_I8_I10_no_reader_takes_a_damaged_file(store: Store, tmp_path: Path, reader: str) -> None:
    read, names = READERS[reader]
    for name in names:
        key, data = f"{KEY}/attempt/{name}", FILES[name]
        expected = checkpoints.read_manifest(store, KEY).files[name].sha256
        for damaged in (bytes([data[0] ^ 1]) + data[1:], None):
            if damaged is None:
                store.remove(key)
            else:
                store.write(key, damaged)
            with pytest.raises((Altered, Damaged)) as caught:
                read(store, tmp_path)
            says = "is missing" if damaged is None else "is damaged"
            assert f"{key} {says} (its manifest has sha256 {expected}" in str(caught.value)
        store.write(key, data)


def test_a_manifest_that_cannot_be_read_is_wrong_input(store: Store, tmp_path: Path) -> None:
    from perennial.errors import InputError

    store.write(f"{KEY}/manifest.json", json.dumps({"files": ["model.safetensors"]}).encode())
    with pytest.raises(InputError, match=f"{KEY}/manifest.json: it cannot be read"):
        fetch(store, KEY, tmp_path)

"""Beside a controller that trains: a release, a hint that data landed, and one that takes over."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from perennial.config import load_run
from perennial.controller.context import Workspace
from perennial.runs.ledger import Ledger
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import perennial, perennial_json, start
from tests.support.controllers import supersede
from tests.support.tiny_run import tiny_run, write_run, write_texts
from tests.support.trained_run import STEPS, Lineage, document

pytestmark = pytest.mark.long
FOLDER = "checkpoints/01-code"


def _until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)  # polling a condition


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        root = psutil.Process(process.pid)
        for each in [*root.children(recursive=True), root]:
            each.kill()
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


@pytest.fixture
def run_file(lineage: Lineage, tmp_path: Path) -> Path:
    """A run whose second stage would take hours."""
    shutil.copytree(lineage.after_first, tmp_path / "store")
    run = document(tmp_path)
    run["training"] |= {"workers": 1, "micro_batch": 8, "keep_last": 1000}
    run["stages"]["budget"] = "200000 steps"
    run["release"]["sample_tokens"] = 0
    path = write_run(tmp_path, run)
    perennial("land", path, "code", write_texts(tmp_path)["code"])
    return path


@pytest.fixture
def store(run_file: Path) -> Store:
    return open_store(run_file.parent / "store")


@pytest.fixture
def training(run_file: Path, store: Store) -> Iterator[subprocess.Popen[str]]:
    """Its controller, whose workers have committed a few checkpoints."""
    process = start("run", run_file)
    _until(lambda: len(checkpoint.committed_steps(store, FOLDER)) >= 3, process)
    yield process
    _kill(process)


def test_i7_a_checkpoint_of_the_stage_at_work_is_released_while_the_trunk_goes_on(
    training: subprocess.Popen[str], run_file: Path, store: Store
) -> None:
    before, epoch = checkpoint.committed_steps(store, FOLDER), Ledger(store).read().epoch
    made = perennial_json("release", run_file, "--from", f"01-code@{before[0]}")
    assert made["name"] == f"01-code-{before[0]}-anneal4"
    assert store.exists(f"releases/{made['name']}/model.safetensors")
    card = store.read(f"releases/{made['name']}/README.md").decode()
    assert f"off the trunk's step {before[0]}" in card
    assert f"`{FOLDER}/{before[0]:08d}`, `checkpoints/00-help/{STEPS:08d}`" in card
    state = Ledger(store).read()
    assert (state.epoch, state.corpora["code"].state) == (epoch, "training")
    last = checkpoint.committed_steps(store, FOLDER)[-1]
    assert last > before[-1]
    _until(lambda: checkpoint.committed_steps(store, FOLDER)[-1] > last, training)


def test_what_lands_meanwhile_is_tokenised_while_the_trunk_goes_on(
    training: subprocess.Popen[str], run_file: Path, store: Store
) -> None:
    texts = write_texts(run_file.parent)
    for name in ("more", "and-more"):
        perennial("land", run_file, name, texts["help"])
    before = checkpoint.committed_steps(store, FOLDER)[-1]
    made = perennial_json("ingest", run_file)
    assert made["corpora"] == {"code": "training", "help": "passed", "more": "ready"} | {
        "and-more": "ready"
    }
    _until(lambda: checkpoint.committed_steps(store, FOLDER)[-1] > before, training)


def test_i4_the_workers_of_a_superseded_controller_write_nothing_more(
    training: subprocess.Popen[str], run_file: Path, store: Store
) -> None:
    ours = psutil.Process(training.pid).children(recursive=True)
    supersede(Workspace(load_run(run_file), str(run_file)))
    before = checkpoint.committed_steps(store, FOLDER)
    _, told = training.communicate()
    assert training.returncode == 1, told
    assert "this one stops" in told
    assert not [each for each in ours if each.is_running() and each.status() != "zombie"]
    # At most the one that passed its last look at the ledger before the other took over.
    after = checkpoint.committed_steps(store, FOLDER)
    assert after[: len(before)] == before
    assert len(after) <= len(before) + 1
    events = [info.key for info in store.list("ledger") if info.key.count("/") == 1]
    assert b'"took-over"' in store.read(events[-1]), "the last word is the new controller's"


def test_a_watch_that_sleeps_for_an_hour_is_woken_by_a_hint(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_file, store = write_run(tmp_path, tiny_run(tmp_path)), open_store(tmp_path / "store")
    process = start("watch", run_file, "--interval", 3600, "--webhook", port)
    try:
        assert process.stderr is not None
        assert any("next look in 3600 s" in line for line in process.stderr)
        perennial("land", run_file, "help", write_texts(tmp_path)["help"])
        for _ in range(3):  # it may be signalled any number of times
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", b"{}").close()
        _until(lambda: "help" in Ledger(store).read().corpora, process)
    finally:
        _kill(process)
    assert Ledger(store).read().corpora["help"].event_kinds.count("landed") == 1

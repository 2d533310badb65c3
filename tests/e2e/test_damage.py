"""Bits flipped in a run's store: the verb that reads them names the file and ends (I10)."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from perennial.runs.ledger import Ledger
from perennial.store import Store, open_store
from tests.support.cli import perennial, perennial_json
from tests.support.tiny_run import write_run, write_texts
from tests.support.trained_run import Lineage, document

pytestmark = pytest.mark.long


def _flip(store: Store, key: str) -> tuple[bytes, str]:
    """Flip a bit; return the bytes before it, and the digest of those after it."""
    before = store.read(key)
    after = bytearray(before)
    after[len(after) // 2] ^= 0x40
    store.write(key, bytes(after))
    return before, hashlib.sha256(after).hexdigest()


def test_flipped_bits_of_a_shard_and_of_a_stages_end_are_named(
    lineage: Lineage, tmp_path: Path, ray_head: dict[str, str]
) -> None:
    shutil.copytree(lineage.after_first, tmp_path / "store")
    run_file = write_run(tmp_path, document(tmp_path))
    store = open_store(tmp_path / "store")
    state = Ledger(store).read()

    end = state.ends["00-help"]
    attempt = json.loads(store.read(f"{end}/manifest.json"))["attempt"]
    weights = f"{end}/{attempt}/model.safetensors"
    sound, found = _flip(store, weights)
    line = perennial("release", run_file, code=1, env=ray_head)
    assert f"{weights} is damaged (its manifest has sha256 " in line
    assert found in line
    store.write(weights, sound)

    perennial("land", run_file, "code", write_texts(tmp_path)["code"])
    perennial("ingest", run_file, env=ray_head)
    shard = "corpora/code/shard-00000.parquet"
    sound, found = _flip(store, shard)
    line = perennial("run", run_file, code=1, env=ray_head)
    assert f"{shard} is damaged" in line
    assert found in line
    corpus = Ledger(store).read().corpora["code"]
    assert (corpus.state, corpus.next_try) == ("failed", None)
    assert shard in corpus.reason

    store.write(shard, sound)
    perennial("retry", run_file, "code")
    assert perennial_json("run", run_file, env=ray_head)["corpora"]["code"] == "passed"

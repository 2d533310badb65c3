"""A shard with flipped bits: the run names it, trains none of it, and goes on once it is mended."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from perennial.runs.ledger import Ledger
from perennial.store import open_store
from tests.support.cli import perennial
from tests.support.tiny_run import tiny_run, write_run, write_texts

SHARD = "corpora/help/shard-00000.parquet"


@pytest.mark.long
def test_I10_flipped_bits_of_a_shard_end_the_training_with_its_name(
    tmp_path: Path, ray_head: dict[str, str]
) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    perennial("land", run_file, "help", write_texts(tmp_path)["help"])
    perennial("ingest", run_file, env=ray_head)
    store = open_store(tmp_path / "store")
    sound = store.read(SHARD)
    flipped = bytearray(sound)
    flipped[len(flipped) // 2] ^= 0x40
    store.write(SHARD, bytes(flipped))

    line = perennial("run", run_file, code=1, env=ray_head)
    assert (
        f"{SHARD} is damaged (its manifest has sha256 {hashlib.sha256(sound).hexdigest()}" in line
    )
    assert f"two reads gave {hashlib.sha256(flipped).hexdigest()}" in line
    assert "nan" not in line.lower()
    corpus = Ledger(store).read().corpora["help"]
    assert (corpus.state, corpus.next_try) == ("failed", None)
    assert SHARD in corpus.reason
    assert not [info for info in store.list("checkpoints") if info.key.endswith("manifest.json")]

    store.write(SHARD, sound)
    perennial("retry", run_file, "help")
    perennial("run", run_file, env=ray_head)
    assert Ledger(store).read().corpora["help"].state == "passed"

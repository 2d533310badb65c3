"""A corpus brings entries to the tokenizer: the model grows at its stage, local and in S3."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from perennial.corpora import load_tokenizer, read_growth, read_manifest
from perennial.runs.event_codec import decode
from perennial.runs.events import Extended
from perennial.runs.ledger import FOLDER, Ledger
from perennial.store import Log, Store, open_store
from perennial.training.checkpoint import manifest as checkpoints
from tests.support.cli import perennial, perennial_json, start
from tests.support.passages import PASSAGES
from tests.support.tiny_run import tiny_run, write_run, write_texts

ENTRIES = 90
ROWS = 300


def _french(folder: Path, seed: int) -> Path:
    """Documents of the words of a French text, in an order of their own each."""
    words, chance = PASSAGES["fr"].split(), random.Random(seed)
    texts = [" ".join(chance.sample(words, len(words))) for _ in range(900)]
    path = folder / f"french-{seed}.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n")
    return path


def _document(folder: Path, store: str) -> dict[str, Any]:
    document = tiny_run(folder, store)
    french = {"extend_tokenizer": {"entries": ENTRIES}, "optimizer": "keep"}
    document["stages"] |= {"corpora": {"french": french}, "budget": "8 steps"}
    document["training"] |= {"workers": 1, "micro_batch": 8, "checkpoint_every": "3 steps"}
    document["gates"] = {"min_gain": 0.0, "max_forgetting": 5.0}
    return document


def _copied(store: Store, folder: Path) -> Path:
    """The run as it stands, in a store of its own; its run file."""
    folder.mkdir()
    copy = open_store(folder / "store")
    for entry in store.list(""):
        if not entry.key.startswith("leases/"):
            copy.write(entry.key, store.read(entry.key))
    return write_run(folder, _document(folder, copy.url))


def _kill_in_the_grown_stage(run_file: Path, store: Store, env: dict[str, str]) -> None:
    """Kill the run and all it started once the stage that grew has a checkpoint of its own."""
    process = start("run", run_file, env=env)
    while not checkpoints.committed_steps(store, "checkpoints/01-french"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)  # polling a condition: the first checkpoint
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _weights(store: Store) -> dict[str, str]:
    end = Ledger(store).read().ends["01-french"]
    files = checkpoints.read_manifest(store, end).files
    return {name: file.sha256 for name, file in files.items() if name.endswith(".safetensors")}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_i9_a_vocabulary_grows_at_a_stage_and_a_kill_changes_nothing(
    tmp_path: Path, store_url: str, ray_head: dict[str, str]
) -> None:
    env = {**ray_head, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    run_file = write_run(tmp_path, _document(tmp_path, store_url))
    store = open_store(store_url)
    perennial("land", run_file, "help", write_texts(tmp_path)["help"])
    perennial("run", run_file, env=env)
    perennial("land", run_file, "french", _french(tmp_path, seed=0))
    calm = _copied(store, tmp_path / "calm")
    planned = perennial_json("plan", run_file, env=env)
    assert any("french brings" in note for note in planned["notes"])
    _kill_in_the_grown_stage(run_file, store, env)
    done = perennial_json("run", run_file, env=env)
    perennial("run", calm, env=env)
    assert _weights(store) == _weights(open_store(tmp_path / "calm" / "store"))
    _check_story(store)
    _check_losses(store, done)
    _check_release(store, run_file, env, tmp_path)
    assert perennial_json("verify", run_file, env=env)["findings"] == []
    # What lands after the stage has the entries too, and no new rows come of it.
    perennial("land", run_file, "more", _french(tmp_path, seed=1))
    perennial("ingest", run_file, env=env)
    assert read_manifest(store, "more").vocabulary == ROWS + ENTRIES


def _check_story(store: Store) -> None:
    told = [decode(data).event for data in Log(store, FOLDER).entries().values()]
    (extended,) = [event for event in told if isinstance(event, Extended)]
    assert (extended.first, extended.vocabulary) == (ROWS, ROWS + ENTRIES)
    assert read_growth(store, "french").entries == ENTRIES
    first, grown = load_tokenizer(store), load_tokenizer(store, extended.folder)
    manifests = {name: read_manifest(store, name) for name in ("help", "french")}
    assert {name: m.tokenizer for name, m in manifests.items()} == {
        "help": first.fingerprint,
        "french": grown.fingerprint,
    }
    assert extended.grew_from == first.fingerprint
    ends = Ledger(store).read().ends
    tokenizers = [checkpoints.read_manifest(store, key).tokenizer for key in ends.values()]
    assert tokenizers == ["tokenizer", extended.folder]


def _check_losses(store: Store, done: Any) -> None:
    """The stage before, which has fewer entries, is measured on the same bytes and counts."""
    first, second = (stage["losses"] for stage in done["matrix"]["stages"])
    for corpus in ("help", "french"):
        before, after = first[corpus], second[corpus]
        assert [before[k] for k in ("bytes", "tokens", "documents")] == [
            after[k] for k in ("bytes", "tokens", "documents")
        ]
        for loss in (before, after):
            nats = loss["bits_per_byte"] * math.log(2) * loss["bytes"]
            assert loss["nats_per_token"] == pytest.approx(nats / loss["tokens"])
    assert second["french"]["bits_per_byte"] < first["french"]["bits_per_byte"]
    verdicts = Ledger(store).read().verdicts["01-french"]
    gained = next(verdict for verdict in verdicts if verdict.gate == "min_gain")
    fall = first["french"]["nats_per_token"] - second["french"]["nats_per_token"]
    assert gained.value == pytest.approx(fall) and gained.holds


def _check_release(store: Store, run_file: Path, env: dict[str, str], folder: Path) -> None:
    released = perennial_json("release", run_file, env=env)
    local = folder / "release"
    for entry in store.list(released["folder"]):
        store.download(entry.key, local / entry.key.removeprefix(f"{released['folder']}/"))
    tokenizer = AutoTokenizer.from_pretrained(local)
    model = AutoModelForCausalLM.from_pretrained(local)
    # 300 rows are padded to a multiple of 4 alone, which growth does not take for a padding.
    assert model.config.vocab_size == ROWS + ENTRIES == len(tokenizer)
    grown = load_tokenizer(store, "tokenizer/grown/french").build()
    for text in (PASSAGES["fr"], PASSAGES["en"], "<|endoftext|> l'été"):
        plain = text.replace("<|endoftext|>", "")
        assert tokenizer(plain)["input_ids"] == grown.encode(plain).ids
    assert max(tokenizer(PASSAGES["fr"])["input_ids"]) >= ROWS
